"""The Lightning callback, in real fits."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from peakpoint import CheckpointError, load, load_checkpoint, load_model
from peakpoint.checkpointing.policies.early_stopping import EarlyStopping
from peakpoint.checkpointing.policies.top_k import TopK
from peakpoint.checkpointing.storage import listing
from tests.checkpointing.checkpoint_cases import damage
from tests.checkpointing.policies import policy_cases as case
from tests.states import differences

lightning = pytest.importorskip("lightning.pytorch")
pytestmark = pytest.mark.filterwarnings("ignore")

from peakpoint.adapters.lightning import PeakpointCheckpoint, newest  # noqa: E402

WEIGHTS = ("model_state_dict", "optimizer_states", "lr_schedulers", "rng_state")


class Module(lightning.LightningModule):
    """A tiny network with dropout; its validation accuracy is what the test says."""

    def __init__(self, accuracies=()):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 2))
        self.accuracies = accuracies

    def training_step(self, batch, _):
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        values = self.accuracies
        value = values[self.current_epoch] if values else 0.5
        self.log("val_acc", value)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def loaders():
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))
    data = TensorDataset(x, (x.sum(1) > 0).long())
    return DataLoader(data, 8, shuffle=True), DataLoader(data, 8)


def rolling(keep=2, **periods):
    return {"rolling": case.interval(**(periods or {"epochs": 1}), keep_last=keep)}


def fit(
    root, epochs, *, module=Module, policies=None, accuracies=(), ckpt_path=None, seed=0, compress=False,
    callbacks=(), **options,
):  # fmt: skip
    torch.manual_seed(seed)
    callback = PeakpointCheckpoint(root, policies or rolling(), compress=compress)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        callbacks=[callback, *callbacks], **options,
    )  # fmt: skip
    trainer.fit(module(accuracies), *loaders(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def best():
    return {"best": case.best(val_acc="max")}


def milestones(root):
    return [m.metrics["val_acc"] for m in listing.manifests(root) if m.tier == "milestone"]


def test_the_best_is_kept_whatever_came_first(tmp_path):
    fit(tmp_path, 5, policies=best(), accuracies=[math.nan, 0.0, 0.9, 0.5, math.inf])
    assert milestones(tmp_path) == pytest.approx([0.9])
    (found,) = [m for m in listing.manifests(tmp_path) if m.tier == "milestone"]
    assert (found.epoch, found.global_step) == (2, 9)


def test_only_the_last_ones_stay_and_both_libraries_read_them(tmp_path):
    fit(tmp_path, 4)
    found = listing.manifests(tmp_path)
    assert [m.epoch for m in found] == [2, 3]
    assert [m.global_step for m in found] == [9, 12]
    state = load(tmp_path / found[-1].file)
    assert set(state["model_state_dict"]) == set(Module().state_dict())
    restored = Module.load_from_checkpoint(newest(tmp_path), weights_only=True)
    assert not differences(dict(restored.state_dict()), state["model_state_dict"])


def test_the_end_of_an_epoch_is_saved_once(tmp_path):
    fit(tmp_path, 2, policies=best() | rolling(3))
    training = [m for m in listing.manifests(tmp_path) if m.tier == "training"]
    assert [m.metrics.get("val_acc") for m in training][-1] == 0.5
    milestone = next(m for m in listing.manifests(tmp_path) if m.tier == "milestone")
    assert (tmp_path / milestone.file).stat().st_nlink == 2 or len(training) == 1


@pytest.mark.parametrize("cut", [1, 2])
def test_a_resumed_fit_equals_the_whole_one_bit_for_bit(tmp_path, cut):
    fit(tmp_path / "whole", 4)
    fit(tmp_path / "cut", cut)
    fit(tmp_path / "cut", 4, ckpt_path=newest(tmp_path / "cut"), seed=99)
    whole, resumed = (load(newest(tmp_path / name)) for name in ("whole", "cut"))
    assert resumed["global_step"] == whole["global_step"] == 12
    for name in WEIGHTS:
        assert not differences({name: resumed[name]}, {name: whole[name]}), name


def test_a_fit_that_an_error_ended_goes_on(tmp_path):
    class Breaks(Module):
        def on_train_epoch_start(self):
            if self.current_epoch == 2:
                raise ValueError("broken off")

    fit(tmp_path / "whole", 4)
    with pytest.raises(ValueError, match="broken off"):
        fit(tmp_path / "cut", 4, module=Breaks)
    assert newest(tmp_path / "cut").stem == "checkpoint_epoch_0001_step_00000006"
    fit(tmp_path / "cut", 4, ckpt_path=newest(tmp_path / "cut"), seed=99)
    whole, resumed = (load(newest(tmp_path / name)) for name in ("whole", "cut"))
    assert not differences(resumed["model_state_dict"], whole["model_state_dict"])


def test_worse_after_a_resume_is_not_best(tmp_path):
    fit(tmp_path, 1, policies=best(), accuracies=[0.9])
    fit(tmp_path, 2, policies=best(), accuracies=[0.9, 0.3], ckpt_path=newest(tmp_path))
    assert milestones(tmp_path) == pytest.approx([0.9])


def test_a_damaged_file_is_passed_over(tmp_path):
    fit(tmp_path, 2)
    damage(newest(tmp_path))
    found = newest(tmp_path)
    assert "epoch_0000" in found.name
    trainer = fit(tmp_path, 3, ckpt_path=found)
    assert trainer.current_epoch == 3


def test_a_policy_stops_the_fit(tmp_path):
    settings = EarlyStopping(metric="val_acc", mode="max", patience=2, min_delta=0.0)
    trainer = fit(tmp_path, 9, policies={"stop": settings})
    assert trainer.current_epoch == 3


def test_steps_are_optimizer_steps(tmp_path):
    fit(tmp_path, 2, policies=rolling(50, steps=1), accumulate_grad_batches=3)
    assert [m.global_step for m in listing.manifests(tmp_path) if m.tags == ("interval",)] == [1, 2]


def test_an_unwritable_place_ends_the_fit_before_it_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError):
        fit(tmp_path / "file", 1)


@pytest.mark.parametrize(
    ("policies", "options", "sentence"),
    [
        (None, {}, "policies is None"),
        ([case.best(val_acc="max")], {}, "give a dict of policies by name"),
        ({1: case.best(val_acc="max")}, {}, "the name 1: name each policy by a text"),
        ({"best": EarlyStopping}, {}, "The policy best is <class"),
        (best(), {"on_error": "warning"}, "on_error='warning' is not a choice"),
        (best(), {"compress": "no"}, "compress='no' is not true or false"),
    ],
)
def test_an_argument_of_another_kind_is_refused_before_the_fit(tmp_path, policies, options, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        PeakpointCheckpoint(tmp_path, policies, **options)


def test_a_checkpoint_of_lightning_itself_is_loaded_with_a_warning(tmp_path, caplog):
    """Its own file, without a manifest: `load_checkpoint` takes weights and optimizer."""
    trainer = lightning.Trainer(accelerator="cpu", barebones=True, max_epochs=1)
    module = Module()
    trainer.fit(module, loaders()[0])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="It is a checkpoint of Lightning: build its network"):
        load_model(tmp_path / "last.ckpt")
    fresh = Module()
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.01)
    state = load_checkpoint(tmp_path / "last.ckpt", fresh.net, optimizer)
    assert not differences(fresh.state_dict(), module.state_dict())
    assert not differences(optimizer.state_dict(), trainer.optimizers[0].state_dict())
    assert state["global_step"] == 3
    assert "its bytes cannot be verified" in caplog.text


def test_a_metric_of_another_name_is_a_warning_at_the_first_evaluation(tmp_path, caplog):
    settings = EarlyStopping(metric="val_accuracy", mode="max", patience=1, min_delta=0.0)
    policies = {
        "best": case.best(val_accuracy="max"),
        "top_k": TopK(metric="val_accuracy", mode="max", k=2),
        "stop": settings,
    }
    trainer = fit(tmp_path, 4, policies=policies)
    assert trainer.global_step == 12  # early stopping stops nothing by a name that is not there
    lines = [r.message for r in caplog.records if "val_accuracy" in r.message]
    for message, policy in zip(lines, policies, strict=True):
        assert message.startswith("val_accuracy is not measured: did you mean val_acc? Until it is, ")
        assert f"policy {policy} does nothing" in message


def test_epochs_are_numbered_as_lightning_shows_them(tmp_path):
    shown = []

    class Numbers(lightning.Callback):
        def on_validation_end(self, trainer, _):
            shown.append(trainer.current_epoch)

    accuracies = [0.1, 0.2, 0.9, 0.3, 0.2]
    fit(tmp_path, 5, policies=best() | rolling(9, epochs=2), accuracies=accuracies, callbacks=[Numbers()])
    assert shown == [0, 1, 2, 3, 4]
    found = listing.manifests(tmp_path)
    (peak,) = [m for m in found if m.tier == "milestone"]
    assert (peak.epoch, peak.file) == (2, "milestone/best_val_acc_0.9000_epoch_0002.pt")
    assert [m.epoch for m in found if "interval" in m.tags] == [1, 3]  # every second one, as Lightning counts
    assert [(m.epoch, m.global_step) for m in found if "last" in m.tags] == [(4, 15)]


def test_a_network_that_torch_prunes_is_measured_at_its_real_sparsity(tmp_path, caplog):
    class Pruned(Module):
        def on_fit_start(self):
            for layer in (self.net[0], self.net[3]):
                prune.l1_unstructured(layer, "weight", amount=0.75)

    caplog.set_level("INFO")
    fit(tmp_path, 1, module=Pruned, policies=best())
    assert {m.sparsity for m in listing.manifests(tmp_path)} == {0.75}
    assert "sparsity 75.00% of the matrices and kernels, 64.86% of all 74 parameters" in caplog.text


def test_a_validation_loss_that_is_not_finite_makes_no_best(tmp_path, caplog):
    class Lost(Module):
        def validation_step(self, batch, index):
            super().validation_step(batch, index)
            self.log("val_loss", math.nan if self.current_epoch == 1 else 1.0)

    fit(tmp_path, 3, module=Lost, policies=best(), accuracies=[0.5, 0.9, 0.7])
    assert milestones(tmp_path) == pytest.approx([0.7])
    assert "val_loss is nan at epoch 1: this network cannot be a best" in caplog.text


def test_a_validation_in_mid_epoch_shares_the_file_of_its_step(tmp_path):
    policies = best() | rolling(9, steps=1)
    fit(tmp_path, 1, policies=policies, accuracies=[0.5], val_check_interval=1)
    for step in (1, 3):
        there = [m for m in listing.manifests(tmp_path) if m.global_step == step]
        assert len({m.digest for m in there}) == 1
