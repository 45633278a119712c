"""A run's directory that is moved, replaced or removed while the run writes to it; files of others in it."""

import json
import shutil
from pathlib import Path

import pytest

from peakpoint.checkpointing.storage import listing, locate
from peakpoint.checkpointing.storage.manifest import sealed
from peakpoint.commands import dispatch as cli
from peakpoint.deployment.inference.network import best
from peakpoint.library.manager import CheckpointManager
from peakpoint.trainer.nonfinite import last_good
from tests.conftest import TINY, rows, run_main, status

PLUGIN = """
import os, shutil
from dataclasses import dataclass
from peakpoint import register
from peakpoint.checkpointing.events import StepEnd
from peakpoint.checkpointing.policy import Policy

@register("policy", "at_step")
@dataclass(kw_only=True)
class AtStep(Policy):
    step: int = 10
    how: str = "move"

    def decide(self, event):
        if isinstance(event, StepEnd) and event.step == self.step:
            HOW[self.how]()
        return []

def retarget():
    os.unlink("current")
    os.symlink("b", "current")

def replace():
    os.rename("run", "moved")
    os.mkdir("run")

def other_disk():
    shutil.copytree("run", "moved")
    shutil.rmtree("run")

HOW = {"move": lambda: os.rename("run", "moved"), "replace": replace, "retarget": retarget,
       "other_disk": other_disk}
"""


@pytest.fixture
def disturbed(tmp_path, monkeypatch):
    """Train in `run`, to which something happens after ten steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "disturbing.py").write_text(PLUGIN)

    def train(how: str, *arguments: str, run: str = "run"):
        policies = "checkpoint/policy=[interval,best,at_step]"
        plugin = ("plugins=[disturbing]", f"checkpoint.policy.at_step.how={how}")
        return run_main(*TINY, *plugin, policies, f"hydra.run.dir={run}", *arguments)

    return train


@pytest.mark.parametrize("how", ["move", "replace"])
def test_a_run_goes_on_where_its_directory_was_moved_to(disturbed, tmp_path, how):
    done = disturbed(how, "logger=[console,tensorboard]", "checkpoint.interval=1")
    assert (done.code, done.err) == (0, "")
    moved = tmp_path / "moved"
    assert done.out.count(f"{tmp_path / 'run'} was moved to {moved}: the run continues there.") == 1
    assert [m.epoch for m in listing.manifests(moved / "checkpoints") if "interval" in m.tags] == [1, 2, 3]
    assert status(moved)["state"] == "finished"
    assert [row["epoch"] for row in rows(moved, "eval")] == [1, 2, 3]
    assert "training ended at epoch 3" in (moved / "train.log").read_text()
    assert not (moved / ".lock").exists()
    left = tmp_path / "run"
    assert list(left.iterdir()) == [] if how == "replace" else not left.exists()
    assert run_main("resume=moved", "epochs=4", "plugins=[disturbing]").code == 0


@pytest.mark.parametrize("policy", ["warn", "stop"])
def test_a_run_whose_directory_is_gone_ends_with_one_line(disturbed, tmp_path, policy):
    err = disturbed("other_disk", f"checkpoint.on_error={policy}", "checkpoint.background=false").refusal()
    assert err == (
        f"error: {tmp_path / 'run'} is not there any more: it was removed, or moved to another file system. "
        "The run cannot be saved, so it ends: put the directory back, and resume from it.\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_link_that_leads_elsewhere_later_splits_no_run(disturbed, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "current").symlink_to("a")
    assert disturbed("retarget", run="current").code == 0
    assert list((tmp_path / "b").iterdir()) == []
    assert status(tmp_path / "a")["state"] == "finished"
    assert "training ended at epoch 3" in (tmp_path / "a" / "train.log").read_text()
    assert run_main("resume=a", "epochs=4", "plugins=[disturbing]").code == 0


@pytest.fixture
def mixed(tmp_path, whole_run, monkeypatch):
    """A copy of a run with the checkpoints of another beside its own, which claim to be later and perfect."""
    monkeypatch.chdir(tmp_path)
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(whole_run, run, symlinks=True)
    assert run_main(*TINY, "seed=7", "epochs=1", f"hydra.run.dir={other}").code == 0
    (theirs,) = {m.run for m in listing.manifests(other / "checkpoints")}
    for manifest in listing.manifests(other / "checkpoints"):
        mark = (other / "checkpoints" / manifest.file).with_suffix(".json")
        facts = {"sequence": 999, "metrics": {**manifest.metrics, "accuracy": 1.0}}
        mark.write_text(sealed(json.dumps({**json.loads(mark.read_text()), **facts})))
        for path in (mark, mark.with_suffix(".pt")):
            shutil.copy(path, run / "checkpoints" / manifest.tier / f"theirs_{path.name}")
    return run, theirs


def files_of(run: Path, of: str) -> set[str]:
    return {m.file for m in listing.manifests(run / "checkpoints") if m.run == of}


def test_checkpoints_of_another_run_are_a_warning_and_left_alone(mixed):
    run, theirs = mixed
    root, before = run / "checkpoints", files_of(run, theirs)
    assert before
    assert best(root).run != theirs
    assert locate.newest_sound(root).run != theirs
    (own,) = {m.run for m in listing.manifests(root)} - {theirs}
    assert last_good(root, own, 4).run == own
    latest = CheckpointManager(root).get_latest_checkpoint("training")
    assert latest is not None
    assert "theirs" not in latest.name
    assert "theirs" not in locate.locate(root / "milestone" / "best_accuracy.pt")[1].file
    assert cli.main(["gc", str(run)]) == 0
    assert cli.main(["repair", str(run)]) == 0
    assert "theirs" not in str((root / "training" / "latest.pt").readlink())
    done = run_main(f"resume={run}", "epochs=4", "checkpoint.keep_last=2").succeeded()
    assert done.out.count("Of another run than that of") == 1
    assert "epoch 4, step 24" in done.out
    assert files_of(run, theirs) == before
    assert "theirs" not in str((root / "milestone" / "best_accuracy.pt").readlink())
    assert [r["epoch"] for r in rows(run, "test") if r["which"] == "selected"] != [1]
    assert "theirs" not in done.out.split("Kept")[1]


def test_a_named_checkpoint_of_another_run_is_refused(mixed):
    run, _ = mixed
    theirs = next(run.glob("checkpoints/training/theirs*.pt"))
    assert "is of another run than that of" in run_main(f"resume={theirs}", "epochs=4").refusal()


def test_a_run_that_has_only_those_of_another_says_so(mixed):
    run, theirs = mixed
    for manifest in listing.manifests(run / "checkpoints"):
        if manifest.run != theirs:
            (run / "checkpoints" / manifest.file).with_suffix(".json").unlink()
    err = run_main(f"resume={run}", "epochs=4").refusal()
    assert "are of another run, and none of this run is there" in err
