"""The library API: every snippet of the checkpointing guide, and the cases that it does not speak of."""

import copy
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from checkpointing import CheckpointError, CheckpointManager, load, load_checkpoint, resume_training
from checkpointing.manifest import read_manifest
from tests.checkpointing.checkpoint_cases import damage, files_no_larger_than
from tests.states import differences, same

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {"d_model": 16, "n_heads": 2}


class BayesianTransformer(nn.Module):
    """A small classifier with dropout and batch statistics, under the guide's name."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))


class Training:
    """The caller's own side: model, optimizer, schedule, data, and a loop that can be cut anywhere."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self.model = BayesianTransformer()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.7)
        x = torch.randn(40, 8, generator=torch.Generator().manual_seed(5))
        self.order = torch.Generator()
        data = TensorDataset(x, x[:, :3].argmax(1))
        self.loader = DataLoader(data, 8, shuffle=True, generator=self.order)
        self.val = (x, x[:, :3].argmax(1))
        self.step = 0

    def batches(self, epoch: int, first: int = 0):
        self.order.manual_seed(epoch)
        return islice(enumerate(self.loader), first, None)

    def take(self, batch) -> dict[str, float]:
        x, y = batch
        noise = random.random() + np.random.rand()  # the other two generators take part
        self.model.train()
        loss = cross_entropy(self.model(x + 0.01 * noise), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {"loss": loss.item(), "accuracy": 0.5}

    def epoch(self, epoch: int, first: int = 0, stop: int | None = None):
        for index, batch in self.batches(epoch, first):
            if index == stop:
                break
            self.take(batch)

    def state(self) -> dict:
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
            }
        )


def validate(model, val) -> float:
    model.eval()
    with torch.no_grad():
        return (model(val[0]).argmax(1) == val[1]).float().mean().item()


def load_model(path) -> nn.Module:
    """The caller's own helper."""
    model = BayesianTransformer()
    load_checkpoint(path, model)
    return model


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def manager(root) -> CheckpointManager:
    return CheckpointManager(checkpoint_dir=root, max_training_checkpoints=3, save_optimizer=True)


@pytest.fixture
def t() -> Training:
    return Training()


def save(manager, t, *, epoch=0, step=0, **more):
    return manager.save_training_checkpoint(
        t.model, t.optimizer, epoch=epoch, step=step, metrics={"loss": 0.5}, **more
    )


class TestTrainingCheckpoints:
    def test_the_files_have_the_names_of_the_guide(self, manager, root, t):
        for step in (100, 200, 300):
            path = save(manager, t, epoch=1, step=step)
        assert path == root / "training" / "checkpoint_epoch_0001_step_00000300.pt"
        names = sorted(p.name for p in (root / "training").glob("*.pt"))
        assert names == [f"checkpoint_epoch_0001_step_00000{s}00.pt" for s in (1, 2, 3)] + ["latest.pt"]
        assert str((root / "training" / "latest.pt").readlink()) == path.name

    def test_the_contents_are_those_of_the_guide_and_plain(self, manager, t):
        t.epoch(0)
        metrics = {"loss": np.float32(0.25), "accuracy": torch.tensor(0.85)}
        path = manager.save_training_checkpoint(
            t.model, t.optimizer, epoch=5, step=1000, metrics=metrics, scheduler=t.scheduler, config=CONFIG,
            metadata={"notes": "first"},
        )  # fmt: skip
        found = torch.load(path, weights_only=True)
        assert found["version"] == "1.0.0"
        assert found["checkpoint_type"] == "training"
        assert found["epoch"] == 5
        assert found["global_step"] == 1000
        assert found["metrics"] == pytest.approx({"loss": 0.25, "accuracy": 0.85})
        assert found["config"] == CONFIG
        assert found["metadata"] == {"device": "cpu", "pytorch_version": torch.__version__, "notes": "first"}
        assert found["timestamp"].startswith("20")
        assert "git_commit" in found
        assert not differences(
            {
                "model": found["model_state_dict"],
                "optimizer": found["optimizer_state_dict"],
                "scheduler": found["scheduler_state_dict"],
            },
            t.state(),
        )
        assert set(found["rng_state"]) == {"python", "numpy", "torch", "cuda"}

    def test_the_last_three_stay_in_the_order_of_saving(self, manager, t):
        # The guide's loop counts steps within the epoch: step 0 of epoch 1 is newer than step 200 of epoch 0.
        for epoch, step in [(0, 0), (0, 100), (0, 200), (1, 0)]:
            save(manager, t, epoch=epoch, step=step)
        names = [p.name for p in manager.list_checkpoints()["training"]]
        assert names == [f"checkpoint_epoch_{e:04d}_step_{s:08d}.pt" for e, s in [(0, 100), (0, 200), (1, 0)]]

    def test_the_resume_of_the_guide(self, manager, root, t):
        save(manager, t, epoch=3, step=100, scheduler=t.scheduler)
        other = Training(1)
        state = resume_training(root / "training/latest.pt", other.model, other.optimizer, other.scheduler)
        assert state["epoch"] + 1 == 4
        assert state["metrics"] == {"loss": 0.5}
        assert state["global_step"] == 100
        assert not differences(other.state(), t.state())

    @pytest.mark.parametrize(("cut_epoch", "cut_batch"), [(1, 3), (1, 5), (0, 1)])
    def test_a_resumed_training_equals_the_whole_one_bit_for_bit(self, root, cut_epoch, cut_batch):
        whole = Training()
        for epoch in range(3):
            whole.epoch(epoch)
        cut = Training()
        for epoch in range(cut_epoch):
            cut.epoch(epoch)
        cut.epoch(cut_epoch, stop=cut_batch)
        CheckpointManager(root).save_training_checkpoint(
            cut.model, cut.optimizer, epoch=cut_epoch, step=cut.step, metrics={}, scheduler=cut.scheduler,
            batch=cut_batch, epoch_complete=cut_batch == len(cut.loader),
        )  # fmt: skip
        resumed = Training(9)
        latest = CheckpointManager(root).get_latest_checkpoint("training")
        state = resume_training(latest, resumed.model, resumed.optimizer, resumed.scheduler)
        resumed.step = state["global_step"]
        first = state["next_batch"]
        for epoch in range(state["next_epoch"], 3):
            resumed.epoch(epoch, first)
            first = 0
        assert not differences(resumed.state(), whole.state())
        assert resumed.step == whole.step

    def test_without_a_place_in_the_epoch_no_batch_is_skipped(self, manager, t):
        path = save(manager, t, epoch=2, step=7)
        state = resume_training(path, t.model, t.optimizer)
        assert (state["next_epoch"], state["next_batch"]) == (2, 0)
        path = save(manager, t, epoch=2, step=8, epoch_complete=True)
        state = resume_training(path, t.model, t.optimizer)
        assert (state["next_epoch"], state["next_batch"]) == (3, 0)

    def test_the_newest_intact_one_is_resumed_from(self, manager, root, t, caplog):
        good = save(manager, t, step=1)
        damage(save(manager, t, step=2))
        assert manager.get_latest_checkpoint("training") == good
        assert "checkpoint_epoch_0000_step_00000002.pt is damaged" in caplog.text
        damage(save(manager, t, step=3), flip=False)
        # The symlink still names the damaged file.
        assert resume_training(root / "training/latest.pt", t.model, t.optimizer)["global_step"] == 1
        assert len(list((root / "quarantine").glob("*.pt"))) == 2

    def test_a_damaged_manifest_is_passed_over_and_told(self, manager, root, t, caplog):
        good = save(manager, t, step=1)
        damage(save(manager, t, step=2).with_suffix(".json"), flip=False)
        assert manager.get_latest_checkpoint("training") == good
        assert "checkpoint_epoch_0000_step_00000002.pt is damaged" in caplog.text
        damage(save(manager, t, step=3).with_suffix(".json"), flip=False)
        assert load_checkpoint(root / "training" / "latest.pt", t.model)["global_step"] == 1
        assert len(list((root / "quarantine").glob("*.pt"))) == 2

    def test_a_damaged_file_that_is_named_is_refused_and_nothing_is_loaded(self, manager, t):
        path = save(manager, t)
        damage(path)
        other = Training(1)
        before = other.state()
        with pytest.raises(CheckpointError, match="does not match the sha256"):
            manager.load_checkpoint(path, other.model, other.optimizer)
        assert not differences(other.state(), before)

    @pytest.mark.parametrize("harm", ["gone", "dangling", "loop"])
    def test_a_pointer_may_be_lost(self, manager, root, t, harm):
        save(manager, t, step=4)
        link = root / "training" / "latest.pt"
        link.unlink()
        if harm != "gone":
            link.symlink_to("nowhere.pt" if harm == "dangling" else "latest.pt")
        assert resume_training(link, t.model, t.optimizer)["global_step"] == 4

    def test_a_pointer_of_ones_own_is_followed(self, manager, tmp_path, t):
        (tmp_path / "mine.pt").symlink_to(save(manager, t, step=6))
        assert load_checkpoint(tmp_path / "mine.pt", t.model)["global_step"] == 6

    def test_a_directory_goes_on_after_a_restart_and_a_move(self, manager, root, t):
        for step in (1, 2, 3):
            save(manager, t, step=step)
        manager.close()
        moved = root.rename(root.with_name("moved"))
        again = CheckpointManager(moved, max_training_checkpoints=2)
        save(again, t, step=4)
        assert [p.stem[-1] for p in again.list_checkpoints()["training"]] == ["3", "4"]
        assert again.get_latest_checkpoint("training").stem.endswith("4")

    def test_cleanup_keeps_the_newest(self, manager, t):
        for step in (1, 2, 3):
            save(manager, t, step=step)
        deleted = manager.cleanup_old_checkpoints("training", keep=2)
        assert [p.stem[-1] for p in deleted] == ["1"]
        assert [p.stem[-1] for p in manager.list_checkpoints()["training"]] == ["2", "3"]

    def test_cleanup_does_not_count_a_damaged_one(self, manager, t):
        for step in (1, 2, 3):
            path = save(manager, t, step=step)
        damage(path)
        manager.cleanup_old_checkpoints("training", keep=1)
        assert [p.stem[-1] for p in manager.list_checkpoints()["training"]] == ["2"]

    def test_files_of_others_are_never_deleted(self, manager, root, t):
        foreign = save(manager, t, step=1)
        mark = foreign.with_suffix(".json")
        mark.write_text(replace(read_manifest(mark), run="of a trainer").to_json())
        (root / "training" / "notes.pt").write_text("mine")
        for step in range(2, 7):
            save(manager, t, step=step)
        manager.cleanup_old_checkpoints("training", keep=1)
        names = {p.name for p in (root / "training").glob("*.pt") if not p.is_symlink()}
        assert names == {foreign.name, "notes.pt", "checkpoint_epoch_0000_step_00000006.pt"}

    def test_options_leave_states_out_and_a_resume_says_so(self, root, t):
        manager = CheckpointManager(root, save_optimizer=False, save_scheduler=False)
        path = save(manager, t, scheduler=t.scheduler)
        assert load(path)["optimizer_state_dict"] is None
        with pytest.raises(CheckpointError, match="holds no optimizer_state_dict"):
            resume_training(path, t.model, t.optimizer)
        load_checkpoint(path, t.model)

    def test_a_schedule_that_was_not_saved_is_a_warning(self, manager, t, caplog):
        path = save(manager, t)
        assert resume_training(path, t.model, t.optimizer, t.scheduler)["not_restored"] == [
            "scheduler_state_dict"
        ]
        assert "the learning rate schedule starts anew" in caplog.text

    def test_compress_keeps_every_bit_and_fewer_bytes(self, root, t):
        model = nn.Linear(400, 400)
        with torch.no_grad():
            model.weight.masked_fill_(torch.rand_like(model.weight) < 0.9, 0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sizes = {}
        for compress in (False, True):
            manager = CheckpointManager(root, compress=compress)
            path = manager.save_training_checkpoint(model, optimizer, epoch=0, step=0, metrics={})
            sizes[compress] = path.stat().st_size
        assert sizes[True] < 0.2 * sizes[False]
        other = nn.Linear(400, 400)
        load_checkpoint(path, other)
        assert same(other.weight.detach(), model.weight.detach())

    def test_weights_that_are_not_finite_are_not_saved_and_masks_may_be(self, manager, root, t):
        t.model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        good = save(manager, t, step=1)
        with torch.no_grad():
            t.model.head.weight[0, 0] = math.nan
        with pytest.raises(CheckpointError, match=r"head\.weight holds NaN"):
            save(manager, t, step=2)
        assert manager.get_latest_checkpoint("training") == good

    @pytest.mark.parametrize("bad", [{"path": Path("x")}, {"n": np.float32(1)}, {1j: 2}])
    def test_what_is_not_plain_is_refused_when_saving(self, manager, t, bad):
        with pytest.raises(CheckpointError, match=r"state\['config'\]"):
            save(manager, t, config=bad)
        assert manager.list_checkpoints()["training"] == []

    def test_a_metric_that_is_no_number_is_named(self, manager, t):
        with pytest.raises(CheckpointError, match="The metric loss is 'low'"):
            manager.save_training_checkpoint(t.model, t.optimizer, epoch=0, step=0, metrics={"loss": "low"})

    def test_a_full_disk_leaves_the_older_ones(self, manager, root, t):
        good = save(manager, t, step=1)
        with files_no_larger_than(2000), pytest.raises(CheckpointError, match="could not be written"):
            save(manager, t, step=2)
        assert manager.get_latest_checkpoint("training") == good
        assert not list(root.rglob(".staged-*"))
        save(manager, t, step=3)

    def test_another_network_is_refused_in_one_line(self, manager, t):
        path = save(manager, t)
        with pytest.raises(CheckpointError, match=r"of another network: size mismatch for body\.0\.weight"):
            load_checkpoint(path, BayesianTransformer(17))

    def test_a_file_without_manifest_is_refused(self, tmp_path, t):
        torch.save({}, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match="no manifest beside it"):
            load_checkpoint(tmp_path / "x.pt", t.model)
        with pytest.raises(CheckpointError, match="does not exist"):
            load_checkpoint(tmp_path / "y.pt", t.model)

    def test_compiled_models_have_canonical_keys(self, manager, t):
        keys = set(t.model.state_dict())
        whole, part = torch.compile(t.model, backend="eager"), copy.deepcopy(t.model)
        part.body = torch.compile(part.body, backend="eager")
        for model in (whole, part):
            path = manager.save_training_checkpoint(model, t.optimizer, epoch=0, step=0, metrics={})
            assert set(load(path)["model_state_dict"]) == keys
            load_checkpoint(path, part)
            load_checkpoint(path, nn.DataParallel(BayesianTransformer()))
        part.head.bias.data.fill_(7)
        load_checkpoint(path, t.model)
        load_checkpoint(path, part)
        assert same(part.head.bias.detach(), t.model.head.bias.detach())

    def test_distributed_models_have_canonical_keys(self, root, tmp_path):
        script = tmp_path / "ddp.py"
        script.write_text(_DDP)
        done = _python(script, root)
        assert done.returncode == 0, done.stderr
        assert set(load(root / "training/latest.pt")["model_state_dict"]) == {"weight", "bias"}

    def test_one_process_writes_at_a_time_and_others_read(self, manager, root, t, tmp_path):
        save(manager, t, step=1)
        script = tmp_path / "second.py"
        script.write_text(_SECOND)
        done = _python(script, root)
        assert "step 1 read" in done.stdout
        assert f"process {os.getpid()} on" in done.stdout
        manager.close()
        done = _python(script, root)
        assert "saved" in done.stdout, done.stderr

    def test_two_managers_of_one_process_share_the_order(self, root, t):
        first, second = CheckpointManager(root), CheckpointManager(root)
        paths = [save(m, t, step=n) for n, m in enumerate([first, second, first])]
        sequences = [read_manifest(p.with_suffix(".json")).sequence for p in paths]
        assert sequences == [1, 2, 3]

    def test_a_killed_save_loses_nothing(self, root, tmp_path, t):
        script = tmp_path / "killed.py"
        script.write_text(_KILLED)
        assert _python(script, root).returncode == -9
        manager = CheckpointManager(root)
        assert manager.get_latest_checkpoint("training").stem.endswith("1")
        save(manager, t, step=3)
        assert not list(root.rglob(".staged-*"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_an_unwritable_directory_is_told_before_training(self, tmp_path):
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(CheckpointError, match="cannot be written to"):
            CheckpointManager(tmp_path / "locked" / "checkpoints")

    def test_a_place_that_is_a_file_is_told_before_training(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="cannot be written to"):
            CheckpointManager(tmp_path / "file")
        with pytest.raises(CheckpointError, match="max_training_checkpoints=0"):
            CheckpointManager(tmp_path / "ok", max_training_checkpoints=0)

    def test_the_manager_of_a_trainer_reads_the_same_files(self, manager, root, t):
        from checkpointing import store

        save(manager, t, step=5)
        manager.save_milestone_checkpoint(t.model, 0.5, "accuracy", 1)
        found = store.newest_verified(root)
        assert found.manifest is not None
        assert found.manifest.tags == ("best_accuracy",)


class TestMilestoneCheckpoints:
    def test_only_an_improvement_is_saved(self, manager, root, t):
        paths = [
            manager.save_milestone_checkpoint(t.model, metric_value=v, metric_name="accuracy", epoch=e)
            for e, v in enumerate([0.80, 0.85, 0.85, 0.70, 0.86])
        ]
        assert [p and p.name for p in paths] == [
            "best_accuracy_0.8000_epoch_0000.pt",
            "best_accuracy_0.8500_epoch_0001.pt",
            None,
            None,
            "best_accuracy_0.8600_epoch_0004.pt",
        ]
        assert manager.list_checkpoints()["milestone"] == [p for p in paths if p]
        assert str((root / "milestone" / "best_accuracy.pt").readlink()) == paths[-1].name

    @pytest.mark.parametrize(
        ("name", "values", "best"),
        [
            ("loss", [0.5, 0.4, 0.6], 0.4),
            ("val_error", [0.5, 0.0, 0.1], 0.0),
            ("Perplexity", [30, 20, 25], 20),
            ("accuracy", [math.nan, 0.1, 0.5, math.inf, 0.9], 0.9),
            ("f1_score", [0.0, math.nan, -1.0], 0.0),
        ],
    )
    def test_the_best_by_name(self, manager, t, name, values, best):
        for epoch, value in enumerate(values):
            manager.save_milestone_checkpoint(t.model, value, name, epoch, CONFIG)
        latest = manager.get_latest_checkpoint("milestone")
        assert load(latest)["metrics"] == {name: best}

    def test_the_mode_may_be_given(self, manager, t):
        saved = [
            manager.save_milestone_checkpoint(t.model, v, "latency_ms", e, mode="min")
            for e, v in enumerate([50.0, 60.0, 45.0])
        ]
        assert [bool(p) for p in saved] == [True, False, True]
        kept = manager.cleanup_old_checkpoints("milestone", keep=1)
        assert kept == [saved[0]]
        with pytest.raises(CheckpointError, match="max or min"):
            manager.save_milestone_checkpoint(t.model, 1.0, "latency_ms", 3, mode="lower")

    def test_worse_after_a_restart_is_not_best(self, manager, root, t):
        manager.save_milestone_checkpoint(t.model, 0.9, "accuracy", 1)
        manager.close()
        again = CheckpointManager(root)
        assert again.save_milestone_checkpoint(t.model, 0.3, "accuracy", 2) is None
        assert again.save_milestone_checkpoint(t.model, 0.91, "accuracy", 3)

    def test_what_is_gone_from_the_disk_is_not_compared_with(self, manager, t):
        manager.save_milestone_checkpoint(t.model, 0.9, "accuracy", 1).unlink()
        assert manager.save_milestone_checkpoint(t.model, 0.8, "accuracy", 2)

    def test_several_metrics_each_have_their_own_best(self, manager, root, t):
        seen = {"accuracy": [0.5, 0.4], "loss": [1.0, 0.9], "f1_score": [0.3, 0.35]}
        for epoch in range(2):
            for metric_name, values in seen.items():
                manager.save_milestone_checkpoint(t.model, values[epoch], metric_name, epoch, CONFIG)
        pointers = {p.name: str(p.readlink()) for p in (root / "milestone").iterdir() if p.is_symlink()}
        assert pointers == {
            "best_accuracy.pt": "best_accuracy_0.5000_epoch_0000.pt",
            "best_loss.pt": "best_loss_0.9000_epoch_0001.pt",
            "best_f1_score.pt": "best_f1_score_0.3500_epoch_0001.pt",
        }

    def test_metrics_that_peak_together_are_written_once(self, manager, t):
        t.epoch(1)
        manager.save_training_checkpoint(
            t.model, t.optimizer, epoch=1, step=t.step, scheduler=t.scheduler, metrics={}
        )
        values = {"accuracy": 0.9, "loss": 0.1, "f1_score": 0.8}
        paths = {n: manager.save_milestone_checkpoint(t.model, v, n, 1, CONFIG) for n, v in values.items()}
        assert len({path.stat().st_ino for path in paths.values()}) == 1
        assert paths["accuracy"].stat().st_nlink == 3
        for name, path in paths.items():
            other = Training(seed=1)
            state = load_checkpoint(path, other.model, other.optimizer, other.scheduler)
            assert state["metrics"] == {name: values[name]}
            assert state["metadata"]["mode"] == ("min" if name == "loss" else "max")
            assert not differences(other.state(), t.state())
            state = resume_training(path, other.model, other.optimizer, other.scheduler)
            assert state["metrics"] == {name: values[name]}

    @pytest.mark.parametrize("what", ["weight", "sign of a zero", "momentum", "schedule", "epoch", "config"])
    def test_what_differs_by_one_bit_is_written_itself(self, manager, t, what):
        with torch.no_grad():
            t.model.head.bias[0] = 0.0
        t.epoch(1)
        t.model.head.bias.data[0] = 0.0
        given = {"optimizer": t.optimizer, "scheduler": t.scheduler}
        first = manager.save_milestone_checkpoint(t.model, 0.5, "accuracy", 1, CONFIG, **given)
        if what == "weight":
            t.model.head.weight.data.view(torch.int32)[0, 0] ^= 1  # under the version counter
        elif what == "sign of a zero":
            t.model.head.bias.data[0] = -0.0
        elif what == "momentum":
            t.optimizer.state[t.model.head.weight]["exp_avg"].view(torch.int32)[0, 0] ^= 1
        elif what == "schedule":
            t.scheduler.last_epoch += 1
        config = {**CONFIG, "lr": 1.0} if what == "config" else CONFIG
        epoch = 2 if what == "epoch" else 1
        second = manager.save_milestone_checkpoint(t.model, 0.5, "f1_score", epoch, config, **given)
        assert not first.samefile(second)
        other = Training(seed=1)
        load_checkpoint(second, other.model, other.optimizer, other.scheduler)
        assert not differences(other.state(), t.state())

    @pytest.mark.parametrize("harm", ["gone", "damaged"])
    def test_what_is_no_longer_sound_is_not_shared(self, manager, t, harm):
        first = manager.save_milestone_checkpoint(t.model, 0.5, "accuracy", 1)
        first.unlink() if harm == "gone" else damage(first)
        second = manager.save_milestone_checkpoint(t.model, 0.5, "f1_score", 1)
        assert load_checkpoint(second, BayesianTransformer())["metrics"] == {"f1_score": 0.5}

    def test_the_json_holds_config_and_notes(self, manager, t):
        path = manager.save_milestone_checkpoint(
            t.model, metric_value=0.92, metric_name="accuracy", epoch=7, config={**CONFIG, "lr": math.inf},
            metadata={"notes": "Best model so far", "training_hours": 12.5, "dataset_version": "2.0"},
        )  # fmt: skip
        found = json.loads(path.with_suffix(".json").read_text())
        assert found["config"] == {**CONFIG, "lr": "inf"}
        assert found["metadata"]["notes"] == "Best model so far"
        assert found["metadata"]["training_hours"] == 12.5
        assert found["metrics"] == {"accuracy": 0.92}
        assert found["epoch"] == 7
        assert found["reasons"] == ["accuracy 0.9200 is the first"]
        assert load(path)["metadata"]["dataset_version"] == "2.0"

    def test_a_milestone_can_be_resumed_from(self, manager, t):
        # The guide gives the model alone and promises a full state: the optimizer is that of the last save.
        t.epoch(0)
        save(manager, t, scheduler=t.scheduler)
        t.epoch(1)
        path = manager.save_milestone_checkpoint(t.model, 0.9, "accuracy", 1)
        other = Training(3)
        found = manager.load_checkpoint(path, other.model, other.optimizer, other.scheduler, device="cpu")
        assert not differences(other.state(), t.state())
        assert found["epoch"] == 1
        assert resume_training(path, other.model, other.optimizer)["next_epoch"] == 2

    def test_another_models_optimizer_is_not_taken(self, manager, t):
        save(manager, t)
        path = manager.save_milestone_checkpoint(BayesianTransformer(), 0.9, "accuracy", 1)
        assert load(path)["optimizer_state_dict"] is None
        with pytest.raises(CheckpointError, match="holds no optimizer_state_dict"):
            manager.load_checkpoint(path, t.model, t.optimizer)
        path = manager.save_milestone_checkpoint(t.model, 0.91, "accuracy", 1, optimizer=t.optimizer)
        assert load(path)["optimizer_state_dict"] is not None

    def test_the_manager_keeps_no_model_alive(self, manager, t):
        save(manager, t)
        del t.optimizer, t.scheduler
        path = manager.save_milestone_checkpoint(t.model, 0.9, "accuracy", 1)
        assert load(path)["optimizer_state_dict"] is None

    @pytest.mark.parametrize("name", ["best_accuracy_0.92.pt", "best_accuracy.pt", "latest.pt"])
    def test_short_names_of_the_guide(self, manager, root, t, name):
        manager.save_milestone_checkpoint(t.model, 0.90, "accuracy", 6)
        manager.save_milestone_checkpoint(t.model, 0.92, "accuracy", 7)
        assert load_checkpoint(root / "milestone" / name, t.model)["epoch"] == 7
        with pytest.raises(CheckpointError, match="does not exist"):
            load_checkpoint(root / "milestone" / "best_accuracy_0.93.pt", t.model)

    def test_milestones_stay_until_they_are_cleaned_up(self, manager, t):
        for epoch in range(6):
            manager.save_milestone_checkpoint(t.model, epoch / 10, "accuracy", epoch)
            manager.save_milestone_checkpoint(t.model, 1 - epoch / 10, "loss", epoch)
        assert len(manager.list_checkpoints()["milestone"]) == 12
        manager.cleanup_old_checkpoints("milestone", keep=1)
        assert [p.name for p in manager.list_checkpoints()["milestone"]] == [
            "best_accuracy_0.5000_epoch_0005.pt",
            "best_loss_0.5000_epoch_0005.pt",
        ]


class TestProductionCheckpoints:
    def release(self, manager, model, version="1.0.0", **more):
        facts = {"config": CONFIG, "metrics": {"accuracy": 0.92}, "model_card": {"dataset": "IMDB"}} | more
        return manager.save_production_checkpoint(model, version=version, **facts)

    def test_the_files_have_the_names_of_the_guide(self, manager, root, t):
        path = self.release(manager, t.model)
        assert path == root / "production" / "bayesian_transformer_v1.0.0.pt"
        config = root / "production" / "bayesian_transformer_v1.0.0.config.json"
        assert json.loads(config.read_text()) == CONFIG
        card = json.loads((root / "metadata" / "model_cards" / "v1.0.0.json").read_text())
        assert card["dataset"] == "IMDB"
        assert card["version"] == "1.0.0"
        assert card["metrics"] == {"accuracy": 0.92}
        assert str((root / "production" / "latest.pt").readlink()) == path.name

    def test_weights_alone_are_in_it(self, manager, t):
        t.epoch(0)
        save(manager, t)
        found = load(self.release(manager, t.model))
        assert not {"optimizer_state_dict", "scheduler_state_dict", "rng_state"} & set(found)
        assert found["model_version"] == "1.0.0"
        assert found["config"] == CONFIG

    def test_the_name_comes_from_the_config(self, manager, t):
        path = self.release(manager, t.model, config={"name": "sentiment/small"})
        assert path.name == "sentiment_small_v1.0.0.pt"

    @pytest.mark.parametrize(
        "version", ["1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0/../x", "1.0.0\n", "\u0661.0.0"]
    )
    def test_only_semantic_versions(self, manager, t, version):
        with pytest.raises(CheckpointError, match="not a semantic version"):
            self.release(manager, t.model, version)
        assert manager.list_checkpoints()["production"] == []

    def test_a_version_is_used_once(self, manager, root, t):
        path = self.release(manager, t.model)
        before = path.read_bytes()
        for name in ({"name": "another"}, CONFIG):
            with pytest.raises(CheckpointError, match=r"1\.0\.0 is released already"):
                self.release(manager, t.model, config=name)
        assert path.read_bytes() == before
        assert [p.name for p in (root / "production").glob("*.pt")].count(path.name) == 1

    def test_latest_is_the_highest_version_whatever_came_last(self, manager, root, t):
        for version in ("1.9.0", "1.10.0", "1.10.0-rc.2", "1.10.0-rc.10", "1.2.0"):
            self.release(manager, t.model, version)
        assert manager.get_latest_checkpoint("production").name.endswith("v1.10.0.pt")
        assert str((root / "production" / "latest.pt").readlink()).endswith("v1.10.0.pt")
        versions = [p.stem.split("_v")[1] for p in manager.list_checkpoints()["production"]]
        assert versions == ["1.2.0", "1.9.0", "1.10.0-rc.2", "1.10.0-rc.10", "1.10.0"]

    def test_a_release_that_failed_can_be_made_again(self, manager, t):
        with files_no_larger_than(2000), pytest.raises(CheckpointError, match="could not be written"):
            self.release(manager, t.model)
        assert manager.get_latest_checkpoint("production") is None
        self.release(manager, t.model)

    def test_releases_are_never_cleaned_up(self, manager, t):
        self.release(manager, t.model)
        with pytest.raises(CheckpointError, match="never cleaned up"):
            manager.cleanup_old_checkpoints("production", keep=1)
        with pytest.raises(CheckpointError, match="no tier 'staging'"):
            manager.get_latest_checkpoint("staging")


class TestGuide:
    """The guide's longer snippets, as they stand there."""

    def test_quick_start_and_listing(self, tmp_path, monkeypatch, t):
        monkeypatch.chdir(tmp_path)
        model, optimizer, model_config, num_epochs = t.model, t.optimizer, CONFIG, 3
        manager = CheckpointManager(
            checkpoint_dir="checkpoints", max_training_checkpoints=3, save_optimizer=True
        )
        best_acc = -1.0
        for epoch in range(num_epochs):
            for step, batch in t.batches(epoch):
                metrics = t.take(batch)
                if step % 2 == 0:
                    manager.save_training_checkpoint(
                        model, optimizer, epoch=epoch, step=step, metrics=metrics
                    )
            val_acc = validate(model, t.val)
            if val_acc > best_acc:
                manager.save_milestone_checkpoint(
                    model, metric_value=val_acc, metric_name="accuracy", epoch=epoch, config=model_config
                )
                best_acc = val_acc
        manager.save_production_checkpoint(
            model, version="1.0.0", config=model_config, metrics={"accuracy": best_acc},
            model_card={"description": "Production model", "dataset": "IMDB"},
        )  # fmt: skip
        found = manager.list_checkpoints()
        assert (len(found["training"]), len(found["production"])) == (3, 1)
        assert len(found["milestone"]) >= 1
        assert manager.get_latest_checkpoint("production") == Path(
            "checkpoints/production/bayesian_transformer_v1.0.0.pt"
        )
        state = resume_training("checkpoints/training/latest.pt", model, optimizer, t.scheduler)
        assert state["epoch"] == 2
        custom = CheckpointManager(
            checkpoint_dir="custom/path", max_training_checkpoints=5, save_optimizer=True,
            save_scheduler=True, compress=True,
        )  # fmt: skip
        assert custom.list_checkpoints() == {"training": [], "milestone": [], "production": []}

    def test_scenario_1_interrupted(self, root):
        def run(t, stop_after):
            manager = CheckpointManager(root)
            latest = manager.get_latest_checkpoint("training")
            start_epoch = 0
            if latest:
                state = resume_training(latest, t.model, t.optimizer, t.scheduler)
                start_epoch = state["epoch"] + 1
            for epoch in range(start_epoch, stop_after):
                t.epoch(epoch)
                manager.save_training_checkpoint(
                    t.model, t.optimizer, epoch=epoch, step=t.step, metrics={}, scheduler=t.scheduler,
                    epoch_complete=True,
                )  # fmt: skip
            manager.close()
            return t.state()

        run(Training(), 2)
        resumed = run(Training(4), 4)
        whole = Training()
        for epoch in range(4):
            whole.epoch(epoch)
        assert not differences(resumed, whole.state())

    def test_scenario_2_degradation(self, manager, root, t):
        for epoch in range(8):
            t.epoch(epoch)
        good = validate(t.model, t.val)
        manager.save_milestone_checkpoint(t.model, good, "accuracy", 7)
        model = t.model
        with torch.no_grad():
            model.head.weight.neg_()
        current_acc = validate(model, t.val)
        milestone_model = load_model(root / f"milestone/best_accuracy_{good:.4f}.pt")
        milestone_acc = validate(milestone_model, t.val)
        assert milestone_acc == good
        assert current_acc < milestone_acc - 0.05
        model = milestone_model
        assert validate(model, t.val) == good

    def test_scenario_3_rollback(self, manager, root, t):
        facts = {"config": CONFIG, "metrics": {"accuracy": 0.9}, "model_card": {"dataset": "x"}}
        first = copy.deepcopy(t.model.state_dict())
        manager.save_production_checkpoint(t.model, version="1.0.0", **facts)
        t.epoch(0)
        manager.save_production_checkpoint(t.model, version="1.1.0", **facts)
        manager.load_checkpoint(root / "production/bayesian_transformer_v1.0.0.pt", t.model)
        assert not differences(t.model.state_dict(), first)

    def test_development_staging_production(self, tmp_path, monkeypatch, t):
        monkeypatch.chdir(tmp_path)
        manager = CheckpointManager("checkpoints/dev")
        for epoch in range(3):
            t.epoch(epoch)
            manager.save_milestone_checkpoint(t.model, 0.91 + epoch / 100, "accuracy", epoch, CONFIG)
        best_milestone = manager.get_latest_checkpoint("milestone")
        staging_model = load_model(best_milestone)
        staging_metrics = {"accuracy": 0.93, "validated": validate(staging_model, t.val)}
        prod_manager = CheckpointManager("checkpoints/prod")
        prod_manager.save_production_checkpoint(
            staging_model, version="1.1.0", config=CONFIG, metrics=staging_metrics,
            model_card={"performance": staging_metrics},
        )  # fmt: skip
        released = prod_manager.get_latest_checkpoint("production")
        assert released == Path("checkpoints/prod/production/bayesian_transformer_v1.1.0.pt")
        assert not differences(load_model(released).state_dict(), t.model.state_dict())

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_a_device(self, manager, t):
        path = save(manager, t)
        manager.load_checkpoint(path, t.model, t.optimizer, device="cuda")
        assert {value.device.type for value in t.model.state_dict().values()} == {"cuda"}
        path = save(manager, t, step=1)
        assert {value.device.type for value in load(path)["model_state_dict"].values()} == {"cpu"}

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
    def test_a_device_that_is_not_there(self, manager, t):
        path = save(manager, t)
        with pytest.raises(CheckpointError, match="cannot be moved to cuda"):
            manager.load_checkpoint(path, t.model, device="cuda")

    def test_the_example_runs_and_resumes(self, tmp_path):
        done = _python(ROOT / "examples" / "checkpointing_demo.py", tmp_path / "demo")
        assert done.returncode == 0, done.stderr
        assert "equal bit for bit: yes" in done.stdout


def test_importing_the_package_does_not_import_torch():
    code = "import sys, checkpointing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    import checkpointing

    for name in checkpointing.__all__:
        assert getattr(checkpointing, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = checkpointing.nothing_like_this


def _python(script: Path, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), str(root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


_SECOND = """
import sys
from checkpointing import CheckpointManager
from checkpointing.errors import BusyError
from tests.test_checkpointing import Training

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

_KILLED = """
import os, signal, sys
from pathlib import Path
from checkpointing import CheckpointManager
from tests.test_checkpointing import Training

t = Training()
manager = CheckpointManager(sys.argv[1])
manager.save_training_checkpoint(t.model, t.optimizer, epoch=0, step=1, metrics={})
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
manager.save_training_checkpoint(t.model, t.optimizer, epoch=0, step=2, metrics={})
"""

_DDP = """
import os, sys
import torch
from torch import distributed, nn
from checkpointing import CheckpointManager, load_checkpoint

os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
plain = nn.Linear(4, 2)
model = nn.parallel.DistributedDataParallel(plain)
optimizer = torch.optim.AdamW(model.parameters())
path = CheckpointManager(sys.argv[1]).save_training_checkpoint(model, optimizer, epoch=0, step=0, metrics={})
load_checkpoint(path, model, optimizer)
load_checkpoint(path, nn.Linear(4, 2))
distributed.destroy_process_group()
"""
