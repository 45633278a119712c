"""Regrowth: weights are exchanged, and the sparsity stays as it was set."""

import math

import pytest
import torch

from peakpoint.optimizers.pruning.lowest_k import sort_keys
from peakpoint.optimizers.pruning.pruner import Pruner
from peakpoint.optimizers.pruning.regrow import Regrowth, exchange
from tests.optimizers.optimizer_cases import (
    OPTIMIZERS,
    built,
    gradients,
    network,
    pruned_run,
    settings,
    through_a_file,
    train,
)

REGROW = {"target": 0.7, "start_step": 1, "end_step": 6, "regrow_until": 30}


def test_the_fraction_falls_by_a_cosine():
    growth = Regrowth(fraction=0.4, start=10, until=30)
    assert [growth.at(step) for step in (9, 30, 31)] == [0, 0, 0]
    assert growth.at(10) == 0.4
    assert growth.at(20) == pytest.approx(0.2)
    assert growth.at(15) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("regrow", ["gradient", "random"])
def test_the_masks_change_and_their_sparsity_does_not(name, regrow):
    net, optimizer, pruner = pruned_run(name, regrow=regrow, **REGROW)
    total = sum(weight.numel() for weight in pruner.params)
    for step in range(1, 41):
        before = [mask.clone() for mask in pruner.masks]
        version = pruner.mask_version
        train(net, optimizer, step, step)
        gone = sum(int((~mask).sum()) for mask in pruner.masks)
        assert gone == math.ceil(pruner.sparsity * total - 1e-9)
        for weight, mask in zip(pruner.params, pruner.masks, strict=True):
            assert (weight[~mask] == 0).all()
        if step <= 6 or not before:
            continue
        grown = [now & ~then for now, then in zip(pruner.masks, before, strict=True)]
        assert any(mask.any() for mask in grown) == (pruner.mask_version > version)
        assert pruner.mask_version == version or step in (11, 16, 21, 26)
        assert pruner.mask_version > version or step not in (11, 16)
        for weight, mask in zip(pruner.params, grown, strict=True):
            assert (weight[mask] == 0).all()
            assert all((value[mask] == 0).all() for value in optimizer.state[weight].values() if value.ndim)
    assert gone == math.ceil(0.7 * total)


def test_the_largest_gradients_grow_back_and_the_lowest_scores_go():
    net, optimizer, pruner = pruned_run("sgd", decay=0.0, regrow="gradient", **REGROW)
    train(net, optimizer, 1, 10)
    before = [mask.clone() for mask in pruner.masks]
    gradients(net, 11)
    dense = [weight.grad.abs().clone() for weight in pruner.params]
    optimizer.step()
    fraction = pruner.settings.regrowth.at(11)
    for index in range(len(pruner.params)):
        kept = int(before[index].sum())
        count = int(fraction * kept)
        grown = pruner.masks[index] & ~before[index]
        dropped = before[index] & ~pruner.masks[index]
        assert int(grown.sum()) == int(dropped.sum()) <= count
        still = ~before[index] & ~pruner.masks[index]
        if grown.any() and still.any():
            assert dense[index][grown].min() >= dense[index][still].max()
    assert sum(int((m & ~b).sum()) for m, b in zip(pruner.masks, before, strict=True)) > 0


def test_an_exchange_takes_the_lowest_and_brings_the_largest_back():
    keys = sort_keys(torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
    growth = torch.tensor([1.0, 9.0, 2.0, 0.5, 3.0, 8.0, 8.0, 8.0])
    gone = exchange(keys, 3, 0.4, growth)
    assert gone.tolist() == [True, False, True, True, False, False, False, False]


@pytest.mark.parametrize("regrow", ["gradient", "random"])
def test_a_resumed_run_regrows_the_same(regrow):
    net, optimizer, pruner = pruned_run(regrow=regrow, **REGROW)
    train(net, optimizer, 1, 13)
    weights, state = through_a_file([net.state_dict(), optimizer.state_dict()])
    train(net, optimizer, 14, 35)
    again = network()
    again.load_state_dict(weights)
    resumed = built("adamw", again)
    other = Pruner(resumed, settings(regrow=regrow, **REGROW))
    resumed.load_state_dict(state)
    train(again, resumed, 14, 35)
    assert all(torch.equal(a, b) for a, b in zip(pruner.masks, other.masks, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_a_step_that_is_left_out_has_no_gradients_to_regrow_by():
    net, optimizer, pruner = pruned_run(regrow="gradient", **REGROW)
    train(net, optimizer, 1, 10)
    version = pruner.mask_version
    pruner.advance()  # step 11, at which an exchange was due
    assert pruner.mask_version == version
    train(net, optimizer, 12, 16)
    assert pruner.mask_version == version + 1
