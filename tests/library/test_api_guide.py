"""The scenarios and snippets of the checkpointing guide that are not about one tier."""

import copy
from pathlib import Path

import pytest
import torch

from peakpoint import CheckpointError, CheckpointManager, load, resume_training
from tests.checkpointing.api_cases import CONFIG, Training, load_model, save, validate
from tests.conftest import ROOT, process
from tests.skips import HAS_CUDA, NO_CUDA
from tests.states import differences


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

    @pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
    def test_a_device(self, manager, t):
        path = save(manager, t)
        manager.load_checkpoint(path, t.model, t.optimizer, device="cuda")
        assert {value.device.type for value in t.model.state_dict().values()} == {"cuda"}
        path = save(manager, t, step=1)
        assert {value.device.type for value in load(path)["model_state_dict"].values()} == {"cpu"}

    @pytest.mark.skipif(torch.cuda.is_available(), reason=HAS_CUDA)
    def test_a_device_that_is_not_there(self, manager, t):
        path = save(manager, t)
        with pytest.raises(CheckpointError, match="cannot be moved to cuda"):
            manager.load_checkpoint(path, t.model, device="cuda")

    def test_the_example_runs_and_resumes(self, tmp_path):
        done = process(ROOT / "examples" / "checkpointing_demo.py", tmp_path / "demo")
        assert done.returncode == 0, done.stderr
        assert "equal bit for bit: yes" in done.stdout


def test_each_public_name_is_imported_when_it_is_asked_for():
    import peakpoint

    for name in peakpoint.__all__:
        assert getattr(peakpoint, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = peakpoint.nothing_like_this
