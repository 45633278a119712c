"""What is saved brings a run back to the last bit, whatever it is made of; the configured settings win."""

import copy
import random

import numpy as np
import pytest
import torch

from checkpointing import codec
from checkpointing.rng import restore_rng, rng_state
from tests.states import differences
from tests.trainer.parts import fit, interrupted, parts
from trainer import state
from trainer.errors import UserError
from trainer.state import Meter, plain_model

MADE_OF = {
    "adamwprune": [],
    "adamwprune bitter0": ["optimizer.variant=bitter0"],
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


def test_the_weights_of_another_network_are_refused_in_one_line(saved):
    with pytest.raises(UserError, match="The checkpoint is of another network: ") as refusal:
        parts("model=resnet20", "model.dropout=0.3").state.restore(saved)
    assert "\n" not in str(refusal.value)


def test_the_state_of_another_optimizer_is_refused(saved):
    other = copy.deepcopy(saved)
    del other["optimizer_state_dict"]["pruning"]
    with pytest.raises(UserError, match="The optimizer's state does not fit: "):
        parts().state.restore(other)


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


def test_the_learning_rate_of_a_longer_run_is_that_of_its_schedule(saved):
    longer = parts("epochs=30", "scheduler=cosine")
    longer.state.restore(saved)
    group = longer.state.optimizer.param_groups[0]
    expected = 1e-3 * longer.state.scheduler.lr_lambdas[0](3)
    assert group["lr"] == expected


def test_keys_are_canonical_whatever_wraps_the_network():
    made = parts()
    keys = set(made.state.gather()["model_state_dict"])
    wrapped = torch.compile(made.state.model)
    assert set(plain_model(wrapped).state_dict()) == keys
    assert not [key for key in keys if key.startswith(("module.", "_orig_mod."))]
    compiled = parts("compile=true")
    assert set(compiled.state.gather()["model_state_dict"]) == keys


def test_what_is_gathered_can_be_saved_by_every_optimizer():
    for overrides in MADE_OF.values():
        codec.snapshot(parts(*overrides).state.gather())


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


def test_generator_states_are_plain(saved):
    types = {type(v) for v in saved["rng_state"]["numpy"].values()}
    assert types <= {str, int, float, torch.Tensor}
    assert saved["rng_state"]["cuda"] == [] or torch.cuda.is_available()


def test_a_seed_decides_every_generator():
    state.seed_everything(1)
    first = draws()
    state.seed_everything(1)
    assert draws() == first
    state.seed_everything(2)
    assert draws() != first


def test_the_mean_of_the_losses_since_it_was_taken():
    meter = Meter()
    assert np.isnan(meter.take())
    for loss in (1.0, 2.0):
        meter.add(torch.tensor(loss))
    other = Meter()
    other.load_state_dict(copy.deepcopy(meter.state_dict()))
    for each in (meter, other):
        each.add(torch.tensor(6.0))
        assert each.take() == 3.0
        assert np.isnan(each.take())
