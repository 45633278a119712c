"""The library API, tier by tier: every snippet of the checkpointing guide, and what it does not speak of."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from peakpoint import CheckpointError, CheckpointManager, load, load_checkpoint, resume_training
from peakpoint.checkpointing.storage import locate
from tests.checkpointing.api_cases import CONFIG, BayesianTransformer, Training, save
from tests.checkpointing.checkpoint_cases import files_no_larger_than
from tests.conftest import process
from tests.states import differences, same


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
        known = {"device": "cpu", "pytorch_version": torch.__version__, "network": "bayesian_transformer"}
        assert found["metadata"] == {**known, "notes": "first"}
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
        done = process(script, root)
        assert done.returncode == 0, done.stderr
        assert set(load(root / "training/latest.pt")["model_state_dict"]) == {"weight", "bias"}

    def test_the_manager_of_a_trainer_reads_the_same_files(self, manager, root, t):

        save(manager, t, step=5)
        manager.save_milestone_checkpoint(t.model, 0.5, "accuracy", 1)
        found = locate.newest_verified(root)
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


_DDP = """
import os, sys
import torch
from torch import distributed, nn
from peakpoint import CheckpointManager, load_checkpoint

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
