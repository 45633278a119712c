"""What is saved brings a run back to the last bit, whatever it is made of; the configured settings win."""

import copy
import random
import re

import numpy as np
import pytest
import torch

from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing.state.rng import restore_rng, rng_state
from peakpoint.trainer import state
from peakpoint.trainer.state import Meter
from tests.conftest import one_line
from tests.states import differences
from tests.trainer.parts import fit, interrupted, parts

MADE_OF = {
    "adamwprune": [],
    "adamwprune bitter0": ["pruning.criterion=bitter0"],
    "adamw": ["optimizer=adamw", "pruning.target=0.5"],
    "adam": ["optimizer=adam", "optimizer.amsgrad=true", "scheduler=multistep"],
    "adamwspam": [
        "optimizer=adamwspam", "optimizer.reset_interval=4", "optimizer.reset_warmup=3",
        "scheduler=one_cycle",
    ],
    "sgd": ["optimizer=sgd", "pruning.target=0.5", "scheduler=constant", "scheduler.warmup_epochs=1"],
    "clipped": ["optimizer=adamw", "optimizer.clip_norm=0.1", "grad_accumulation=2"],
    "bf16": ["precision=bf16", "nonfinite=skip", "label_smoothing=0.1"],
    "resnet": ["model=resnet20", "model.dropout=0.2", "data.cutout=3", "data.flip=true", "epochs=2"],
}  # fmt: skip


KEYS = [
    "model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "progress", "train_loss", "rng_state",
]  # fmt: skip


@pytest.mark.parametrize("name", MADE_OF)
@pytest.mark.parametrize("step", [4, 8])
def test_restored_in_mid_epoch_or_at_its_end_it_ends_the_same(name, step, tmp_path):
    overrides = MADE_OF[name]
    whole = fit(parts(*overrides), tmp_path / "whole").parts
    saved = interrupted(parts(*overrides), tmp_path / "first", step)
    again = parts(*overrides)
    again.state.restore(saved)
    now = again.state.gather()
    assert differences({k: now[k] for k in KEYS}, {k: saved[k] for k in KEYS}) == []
    fit(again, tmp_path / "second")
    assert differences(again.state.gather(), whole.state.gather()) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoint of step 3."""
    return interrupted(parts(), tmp_path_factory.mktemp("saved"), 3)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_part_is_named(saved, key):
    with pytest.raises(UserError, match=f"The checkpoint has no {key}: it cannot be resumed from"):
        parts().state.restore({k: v for k, v in saved.items() if k != key})


def test_one_more_part_is_saved_under_its_name_and_restored(tmp_path):
    first, again = parts(), parts()
    for made in (first, again):
        made.state.parts["average"] = Meter()
    first.state.parts["average"].add(0.25)
    saved = interrupted(first, tmp_path, 3)
    assert saved["average"] == {"sum": 0.25, "count": 1, "correct": 0, "images": 0}
    again.state.restore(saved)
    assert again.state.parts["average"].take()[0] == 0.25
    with pytest.raises(UserError, match="The checkpoint has no average: it cannot be resumed from"):
        again.state.restore({k: v for k, v in saved.items() if k != "average"})


def test_the_weights_of_another_network_are_refused_in_one_line(saved):
    with one_line(CheckpointError, match="The checkpoint is of another network: "):
        parts("model=resnet20", "model.dropout=0.3").state.restore(saved)


CHANGES = {
    "amsgrad": (["optimizer=adamw"], ["optimizer.amsgrad=true"], "max_exp_avg_sq begins as exp_avg_sq"),
    "no amsgrad": (
        ["optimizer=adam", "optimizer.amsgrad=true"], ["optimizer.amsgrad=false"], "dropped: max_exp_avg_sq"
    ),
    "amsgrad of a pruned run": ([], ["optimizer.amsgrad=true"], "max_exp_avg_sq begins as exp_avg_sq"),
    "no momentum": (
        ["optimizer=sgd"], ["optimizer.momentum=0", "optimizer.nesterov=false"], "dropped: momentum_buffer"
    ),
    "momentum": (
        ["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"], ["optimizer.momentum=0.9"],
        "lacks.* momentum_buffer begins anew",
    ),
    "nesterov": (["optimizer=sgd"], ["optimizer.nesterov=false"], None),
    "betas": (["optimizer=adamw"], ["optimizer.beta1=0.5", "optimizer.beta2=0.9"], None),
    "clipping": (["optimizer=adamw"], ["optimizer.clip_norm=0.1"], None),
    "another schedule": (["scheduler=cosine"], ["scheduler=one_cycle", "optimizer.lr=0.01"], None),
    "another length": (["scheduler=multistep"], ["epochs=4"], None),
    "spam": (["optimizer=adamwspam"], ["optimizer.reset_interval=3", "optimizer.reset_warmup=2"], None),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_changed_takes_its_state_with_it_and_says_so(name, tmp_path, caplog):
    """Resumed once more after the change, it ends as if it had not been interrupted again."""
    before, change, warning = CHANGES[name]
    saved = interrupted(parts(*before), tmp_path / "first", 4)
    whole = parts(*before, *change)
    whole.state.restore(copy.deepcopy(saved))
    lines = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(lines) == (warning is not None), lines
    assert warning is None or re.search(warning, lines[0])
    fit(whole, tmp_path / "whole")
    cut = parts(*before, *change)
    cut.state.restore(saved)
    again = interrupted(cut, tmp_path / "cut", 10)
    caplog.clear()
    resumed = parts(*before, *change)
    resumed.state.restore(again)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    fit(resumed, tmp_path / "resumed")
    assert differences(resumed.state.gather(), whole.state.gather()) == []


def test_every_step_after_a_resume_has_the_rate_that_was_typed(saved):
    """Not the first alone: the scheduler computes each from its base rate."""
    changed = parts("optimizer.lr=0.5", "scheduler=cosine")
    changed.state.restore(copy.deepcopy(saved))
    factor, optimizer = changed.state.scheduler.lr_lambdas[0], changed.state.optimizer
    rates = []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        changed.state.scheduler.step()
    assert rates == [0.5 * factor(step) for step in (3, 4, 5)]


def test_a_dense_checkpoint_of_the_code_before_pruning_was_saved_begins_the_ramp(tmp_path):
    """As code before this wrote it: no kind of optimizer, no begin of a ramp, and no masks when dense."""
    dense = interrupted(parts("optimizer=adamw"), tmp_path / "dense", 4)
    del dense["optimizer"]
    made = parts("optimizer=adamw", "pruning.target=0.5")
    made.state.restore(dense)
    assert made.state.pruner is not None
    assert made.state.pruner.step == 4
    fit(made, tmp_path / "pruned")
    assert made.state.pruner.sparsity == 0.5


def test_a_pruned_checkpoint_of_the_code_before_goes_on_bit_for_bit(tmp_path):
    whole = fit(parts(), tmp_path / "whole").parts
    old = interrupted(parts(), tmp_path / "old", 7)
    del old["optimizer"]
    for key in ("begin", "initial"):
        del old["optimizer_state_dict"]["pruning"]["settings"][key]
    again = parts()
    again.state.restore(old)
    fit(again, tmp_path / "again")
    assert differences(again.state.gather(), whole.state.gather()) == []


def test_settings_are_those_of_the_configuration_not_of_the_file(saved):
    changed = parts(
        "optimizer.lr=0.5", "optimizer.weight_decay=0.25", "optimizer.beta1=0.5", "optimizer.eps=0.125",
        "optimizer.amsgrad=false", "scheduler=constant",
    )  # fmt: skip
    changed.state.restore(saved)
    for group in changed.state.optimizer.param_groups:
        assert (group["betas"][0], group["eps"]) == (0.5, 0.125)
        assert (group["lr"], group["initial_lr"]) == (0.5, 0.5)
    assert {group["weight_decay"] for group in changed.state.optimizer.param_groups} == {0.0, 0.25}
    assert changed.state.scheduler.last_epoch == 3
    first = changed.state.optimizer.param_groups[0]["params"][0]
    assert changed.state.optimizer.state[first]["step"] == 3


def test_keys_are_canonical_whatever_wraps_the_network():
    keys, compiled = (set(parts(*each).state.gather()["model_state_dict"]) for each in ([], ["compile=true"]))
    assert compiled == keys
    assert not [key for key in keys if key.startswith(("module.", "_orig_mod."))]


def draws():
    """Numbers from every generator; the normal ones leave one in store."""
    return (
        random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(2).tolist(),
        np.random.randint(2**31),
    )  # fmt: skip


def test_every_generator_goes_on_where_it_was():
    state.seed_everything(5)
    draws()  # so that a second normal number waits in python and in numpy
    before = rng_state()
    expected = [draws() for _ in range(3)]
    state.seed_everything(6)
    restore_rng(before)
    assert [draws() for _ in range(3)] == expected


def test_a_seed_decides_every_generator():
    state.seed_everything(1)
    first = draws()
    state.seed_everything(1)
    assert draws() == first
    state.seed_everything(2)
    assert draws() != first


def test_the_mean_of_the_losses_since_it_was_taken():
    meter = Meter()
    assert np.isnan(meter.take()).all()
    for loss in (1.0, 2.0):
        meter.add(torch.tensor(loss))
    other = Meter()
    other.load_state_dict(copy.deepcopy(meter.state_dict()))
    for each in (meter, other):
        each.add(torch.tensor(6.0))
        assert each.take()[0] == 3.0
        assert np.isnan(each.take()).all()


@pytest.mark.parametrize("batches", [1, 16, 19])
def test_the_share_of_correct_predictions_since_it_was_taken_also_over_a_resume(batches):
    logits, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    meter, other = Meter(), Meter()
    for _ in range(batches):
        meter.predicted(logits, labels)
    other.load_state_dict(copy.deepcopy(meter.state_dict()))
    for each in (meter, other):
        each.predicted(logits, torch.arange(4))
        assert each.take()[1] == (3 * batches + 4) / (4 * batches + 4)
        assert np.isnan(each.take()[1])


def test_the_meter_of_an_earlier_version_has_no_predictions():
    meter = Meter()
    meter.load_state_dict({"sum": 3.0, "count": 2})
    loss, accuracy = meter.take()
    assert loss == 1.5
    assert np.isnan(accuracy)
