"""The library API when something is damaged, refused, foreign or gone."""

import contextlib
import copy
import math
import os
import sys
from dataclasses import replace

import pytest
import torch

from peakpoint import CheckpointError, CheckpointManager, load_checkpoint, resume_training
from peakpoint.base.files import Staged
from peakpoint.checkpointing.storage.manifest import read_manifest
from peakpoint.library.recorder import Recorder
from tests.checkpointing.api_cases import BayesianTransformer, Training, save
from tests.checkpointing.checkpoint_cases import damage, files_no_larger_than
from tests.conftest import one_line, process
from tests.faults.fault_cases import mounted
from tests.states import differences


@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_the_newest_intact_one_is_resumed_from(manager, root, t, caplog, suffix):
    good = save(manager, t, step=1)
    damage(save(manager, t, step=2).with_suffix(suffix), flip=suffix == ".pt")
    assert manager.get_latest_checkpoint("training") == good
    assert "checkpoint_epoch_0000_step_00000002.pt is damaged" in caplog.text
    damage(save(manager, t, step=3).with_suffix(suffix), flip=False)
    # The symlink still names the damaged file.
    assert resume_training(root / "training/latest.pt", t.model, t.optimizer)["global_step"] == 1
    assert len(list((root / "quarantine").glob("*.pt"))) == 2


def test_a_damaged_file_that_is_named_is_refused_and_nothing_is_loaded(manager, t):
    path = save(manager, t)
    damage(path)
    other = Training(1)
    before = other.state()
    with pytest.raises(CheckpointError, match="does not match the digest"):
        manager.load_checkpoint(path, other.model, other.optimizer)
    assert not differences(other.state(), before)


@pytest.mark.parametrize("harm", ["gone", "dangling", "loop"])
def test_a_pointer_may_be_lost(manager, root, t, harm):
    save(manager, t, step=4)
    link = root / "training" / "latest.pt"
    link.unlink()
    if harm != "gone":
        link.symlink_to("nowhere.pt" if harm == "dangling" else "latest.pt")
    assert resume_training(link, t.model, t.optimizer)["global_step"] == 4


def test_a_pointer_of_ones_own_is_followed(manager, tmp_path, t):
    (tmp_path / "mine.pt").symlink_to(save(manager, t, step=6))
    assert load_checkpoint(tmp_path / "mine.pt", t.model)["global_step"] == 6


def test_cleanup_does_not_count_a_damaged_one(manager, t):
    for step in (1, 2, 3):
        path = save(manager, t, step=step)
    damage(path)
    manager.cleanup_old_checkpoints("training", keep=1)
    assert [p.stem[-1] for p in manager.list_checkpoints()["training"]] == ["2"]


def test_files_of_others_are_never_deleted(manager, root, t):
    foreign = save(manager, t, step=1)
    mark = foreign.with_suffix(".json")
    mark.write_text(replace(read_manifest(mark), run="of a trainer").to_json())
    (root / "training" / "notes.pt").write_text("mine")
    for step in range(2, 7):
        save(manager, t, step=step)
    manager.cleanup_old_checkpoints("training", keep=1)
    names = {p.name for p in (root / "training").glob("*.pt") if not p.is_symlink()}
    assert names == {foreign.name, "notes.pt", "checkpoint_epoch_0000_step_00000006.pt"}


def test_weights_that_are_not_finite_are_not_saved_and_masks_may_be(manager, root, t):
    t.model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    good = save(manager, t, step=1)
    with torch.no_grad():
        t.model.head.weight[0, 0] = math.nan
    with pytest.raises(CheckpointError, match=r"head\.weight holds NaN"):
        save(manager, t, step=2)
    assert manager.get_latest_checkpoint("training") == good


def test_running_statistics_that_are_not_finite_make_no_milestone(manager, t):
    t.model.norm = torch.nn.Sequential(torch.nn.BatchNorm1d(2, affine=False))
    t.model.norm[0].running_var[1] = math.inf
    with pytest.raises(CheckpointError, match=r"norm\.0\.running_var holds NaN or infinite values"):
        manager.save_milestone_checkpoint(t.model, 0.9, "accuracy", 1)
    assert manager.list_checkpoints()["milestone"] == []


@pytest.mark.parametrize("depth", [1, 500])
def test_what_no_manifest_can_hold_is_refused_before_anything_is_written(manager, root, t, depth):
    """torch.seed() gives 64 bits, which are kept; more, or deeper, would be unreadable once saved."""
    notes = {"seed": 2**64 - 1}
    good = save(manager, t, step=1, metadata=notes, config=notes)
    assert manager.get_latest_checkpoint("training") == good
    before = sorted(root.rglob("*"))
    wrong = 2**64
    for _ in range(depth):
        wrong = {"seed": wrong}
    for refused in (
        lambda: save(manager, t, step=2, metadata=wrong),
        lambda: save(manager, t, step=2, config=wrong),
        lambda: save(manager, t, step=2**64),
        lambda: manager.save_milestone_checkpoint(t.model, 0.9, "accuracy", 1, metadata=wrong),
        lambda: manager.save_production_checkpoint(
            t.model, version="1.0.0", config=wrong, metrics={}, model_card={}
        ),
        lambda: manager.save_production_checkpoint(
            t.model, version="1.0.0", config={}, metrics={}, model_card=wrong
        ),
    ):
        with pytest.raises(CheckpointError, match=r"(metadata|config|step|seed) cannot be saved as JSON"):
            refused()
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, t: CheckpointManager(m.root / ("x" * 300)), "checkpoint_dir is .*choose shorter names"),
        (lambda m, t: CheckpointManager(m.root, compress="yes"), "compress='yes' is not true or false"),
        (lambda m, t: CheckpointManager(m.root, save_optimizer=None), "save_optimizer=None is not"),
        (lambda m, t: CheckpointManager(m.root, save_scheduler=2), "save_scheduler=2 is not"),
        (lambda m, t: save(m, t, epoch_complete="y"), "epoch_complete='y' is not true or false"),
        (lambda m, t: save(m, t, metadata="x"), "metadata is of type str: give a dict"),
        (
            lambda m, t: m.save_milestone_checkpoint(t.model, 0.9, "a", 1, mode="max", metadata="x"),
            "metadata is of type str: give a dict",
        ),
        (
            lambda m, t: m.save_milestone_checkpoint(t.model, 0.9, "a" * 300, 1, mode="max"),
            "not a valid name of a file: .* at most 150 characters",
        ),
    ],
)
def test_an_argument_of_another_kind_is_refused(manager, root, t, call, sentence):
    with one_line(CheckpointError, match=sentence):
        call(manager, t)
    assert not list(root.rglob("*.pt"))


def test_a_full_disk_leaves_the_older_ones(manager, root, t):
    good = save(manager, t, step=1)
    with files_no_larger_than(2000), pytest.raises(CheckpointError, match="could not be written"):
        save(manager, t, step=2)
    assert manager.get_latest_checkpoint("training") == good
    assert not list(root.rglob(".staged-*"))
    save(manager, t, step=3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [("network", r"of another network: size mismatch for body\.0\.weight"), ("optimizer", "does not fit")],
)
def test_what_does_not_fit_leaves_the_living_as_they_were(manager, t, wrong, sentence):
    """torch itself loads the layers that fit before it refuses the one that does not."""
    path = save(manager, t)
    model = BayesianTransformer(17 if wrong == "network" else 16)
    groups = [{"params": [p]} for p in model.parameters()]
    optimizer = torch.optim.AdamW(groups if wrong == "optimizer" else model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    before = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    with pytest.raises(CheckpointError, match=sentence):
        load_checkpoint(path, model, optimizer)
    assert not differences({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, before)


def test_a_file_without_weights_is_refused(tmp_path, t):
    torch.save({}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt holds no weights under"):
        load_checkpoint(tmp_path / "x.pt", t.model)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "y.pt", t.model)


def test_one_process_writes_at_a_time_and_others_read(manager, root, t, tmp_path):
    save(manager, t, step=1)
    script = tmp_path / "second.py"
    script.write_text(_SECOND)
    done = process(script, root)
    assert "step 1 read" in done.stdout
    assert f"process {os.getpid()} on" in done.stdout
    manager.close()
    done = process(script, root)
    assert "saved" in done.stdout, done.stderr


def test_two_managers_of_one_process_share_the_order(root, t):
    first, second = CheckpointManager(root), CheckpointManager(root)
    paths = [save(m, t, step=n) for n, m in enumerate([first, second, first])]
    sequences = [read_manifest(p.with_suffix(".json")).sequence for p in paths]
    assert sequences == [1, 2, 3]


def test_an_unwritable_directory_is_reported_before_training(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    # Root may write into any folder, but not to a file system that is mounted read-only.
    as_root = os.geteuid() == 0
    read_only = mounted(locked, "-t tmpfs -o ro tmpfs") if as_root else contextlib.nullcontext()
    with read_only, pytest.raises(CheckpointError, match="cannot be written to"):
        CheckpointManager(locked / "checkpoints")


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_what_is_no_longer_sound_is_not_shared(manager, t, harm):
    first = manager.save_milestone_checkpoint(t.model, 0.5, "accuracy", 1)
    first.unlink() if harm == "gone" else damage(first)
    second = manager.save_milestone_checkpoint(t.model, 0.5, "f1_score", 1)
    assert load_checkpoint(second, BayesianTransformer())["metrics"] == {"f1_score": 0.5}


_SECOND = """
import sys
from peakpoint import CheckpointManager
from peakpoint.base.errors import BusyError
from tests.checkpointing.api_cases import Training

t = Training()
manager = CheckpointManager(sys.argv[1])
latest = manager.get_latest_checkpoint("training")
print("step", manager.load_checkpoint(latest, t.model)["global_step"], "read")
try:
    manager.save_training_checkpoint(t.model, t.optimizer, epoch=0, step=9, metrics={})
    print("saved")
except BusyError as error:
    print(error)
"""


def test_nothing_older_is_retired_before_the_new_one_was_read_back(root, t, monkeypatch):
    manager = CheckpointManager(root, max_training_checkpoints=1)
    first = save(manager, t, step=1)
    write = Recorder.save

    def torn(*args, **kwargs):
        made = write(*args, **kwargs)
        damage(root / made.file)
        return made

    monkeypatch.setattr(Recorder, "save", torn)
    with pytest.raises(CheckpointError, match="does not match the digest"):
        save(manager, t, step=2)
    assert load_checkpoint(first, t.model)["global_step"] == 1


def test_a_milestone_after_reopening_has_the_step_of_the_training(root, t):
    manager = CheckpointManager(root)
    save(manager, t, step=12)
    manager.close()
    path = CheckpointManager(root).save_milestone_checkpoint(t.model, 0.9, "accuracy", 1)
    assert read_manifest(path.with_suffix(".json")).global_step == 12


def test_a_milestone_after_a_step_back_has_the_step_of_the_newest_checkpoint(root, t):
    with CheckpointManager(root) as manager:
        save(manager, t, step=30)
        save(manager, t, step=5)
    path = CheckpointManager(root).save_milestone_checkpoint(t.model, 0.9, "accuracy", 1)
    assert read_manifest(path.with_suffix(".json")).global_step == 5


_FORKS = """
import os, sys
from peakpoint import CheckpointManager
from peakpoint.base.errors import BusyError
from tests.checkpointing.api_cases import Training, save

t, manager = Training(), CheckpointManager(sys.argv[1])
save(manager, t, step=1)
if os.fork() == 0:
    try:
        save(manager, t, step=2)
    except BusyError as error:
        os.write(1, str(error).encode())
    os._exit(0)
os.wait()
save(manager, t, step=3)
print([path.stem[-1] for path in manager.list_checkpoints()["training"]])
"""


def test_a_forked_child_is_another_process(root, tmp_path):
    script = tmp_path / "forks.py"
    script.write_text(_FORKS)
    done = process(script, root)
    assert "is being written by process" in done.stdout, done.stderr
    assert "['1', '3']" in done.stdout


def test_a_relative_directory_stays_where_it_is(tmp_path, t, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manager = CheckpointManager("checkpoints")
    save(manager, t, step=1)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    save(manager, t, step=2)
    assert len(manager.list_checkpoints()["training"]) == 2
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="the present name of an open file is read from /proc")
def test_every_call_follows_a_directory_that_is_moved(manager, root, t):
    save(manager, t, step=1)
    there = root.rename(root.with_name("moved"))
    newest = save(manager, t, step=2)
    assert manager.root == there
    assert manager.get_latest_checkpoint("training") == newest
    (older,) = manager.cleanup_old_checkpoints("training", keep=1)
    assert older.parent == newest.parent
    card = {"version": "1.0.0", "config": {}, "metrics": {}, "model_card": {}}
    assert manager.save_production_checkpoint(t.model, **card).exists()
    assert not root.exists()


def test_a_save_that_ctrl_c_ends_is_ctrl_c_and_leaves_the_older_ones(manager, root, t, monkeypatch):
    good = save(manager, t, step=1)
    write = Staged.write

    def interrupted(self, data):
        write(self, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(Staged, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(manager, t, step=2)
    monkeypatch.undo()
    assert manager.get_latest_checkpoint("training") == good
    assert not list(root.rglob(".staged-*"))


@pytest.mark.parametrize(
    ("here", "sentence"),
    [
        (torch.zeros(2), "head is of torch.complex64 and here of torch.float32"),
        (torch.zeros(2, dtype=torch.cfloat, device="meta"), "head of the model is on the meta device"),
    ],
)
def test_weights_that_the_model_cannot_hold_are_refused(manager, t, here, sentence):
    """torch itself drops the imaginary part, and leaves a model on meta without values."""
    saved, model = torch.nn.Module(), torch.nn.Module()
    saved.register_buffer("head", torch.ones(2, dtype=torch.cfloat))
    model.register_buffer("head", here)
    path = manager.save_training_checkpoint(saved, t.optimizer, epoch=0, step=0)
    with pytest.raises(CheckpointError, match=sentence):
        load_checkpoint(path, model)


def test_a_working_directory_that_is_gone_is_one_line(tmp_path, t, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    with pytest.raises(CheckpointError, match="the working directory is gone"):
        load_checkpoint("latest.pt", t.model)
