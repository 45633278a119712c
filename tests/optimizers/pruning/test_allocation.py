"""How many weights of each tensor are pruned, against integers counted in another way."""

import math
import random
from fractions import Fraction

import pytest
import torch

from peakpoint.base import registry
from peakpoint.optimizers.pruning.allocation import Budget, shares
from peakpoint.optimizers.pruning.lowest_k import lowest_where, sort_keys
from peakpoint.optimizers.pruning.pruner import Pruner
from tests.optimizers.optimizer_cases import built, network, pruned_run, settings, train, zeros

SHAPES = [(16, 3, 3, 3), (32, 16, 3, 3), (32, 32, 1, 1), (64, 32, 3, 3), (10, 64)]
SIZES = [math.prod(shape) for shape in SHAPES]


def oracle(total: int, weights: list[int], low: list[int], high: list[int]) -> list[int]:
    """The shares in exact fractions: the factor lies between two of those at which a tensor meets a limit."""

    def clamped(factor: Fraction) -> list[Fraction]:
        return [
            min(max(factor * w, Fraction(a)), Fraction(b)) for w, a, b in zip(weights, low, high, strict=True)
        ]

    bends = sorted(
        {Fraction(limit, w) for w, *both in zip(weights, low, high, strict=True) for limit in both}
    )
    for left, right in zip([Fraction(0), *bends], bends, strict=False):
        at_left, at_right = sum(clamped(left)), sum(clamped(right))
        if at_left <= total <= at_right:
            part = 0 if at_left == at_right else (total - at_left) / (at_right - at_left)
            exact = clamped(left + part * (right - left))
            whole = [math.floor(value) for value in exact]
            order = sorted(range(len(exact)), key=lambda place: whole[place] - exact[place])
            for place in order[: total - sum(whole)]:
                whole[place] += 1
            return whole
    raise AssertionError("no factor")


def test_shares_are_the_exact_ones_and_add_up():
    numbers = random.Random(0)
    for _ in range(300):
        count = numbers.randint(1, 8)
        high = [numbers.randint(1, 500) for _ in range(count)]
        low = [numbers.randint(0, most) for most in high]
        weights = [numbers.randint(1, 97) for _ in range(count)]
        total = numbers.randint(sum(low), sum(high))
        found = shares(total, weights, low, high)
        assert sum(found) == total
        assert all(a <= value <= b for a, value, b in zip(low, found, high, strict=True))
        expected = oracle(total, weights, low, high)
        # Equal remainders may be told apart by rounding: then two tensors differ by one weight.
        assert sum(abs(a - b) for a, b in zip(found, expected, strict=True)) in (0, 2)
        assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1


def keys(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [sort_keys(torch.randn(shape, generator=generator).abs()) for shape in SHAPES]


def allocated(name: str, k: int, least=(0,) * 5, most=SIZES, scores=None) -> list[torch.Tensor]:
    return registry.make("allocation", name, {})(scores or keys(), Budget(k, SHAPES, least, most))


@pytest.mark.parametrize("name", ["global", "uniform", "erk"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_exactly_k_go_and_of_each_tensor_its_lowest(name, share):
    k = math.ceil(share * sum(SIZES))
    gone = allocated(name, k)
    assert sum(int(mask.sum()) for mask in gone) == k
    for key, mask in zip(keys(), gone, strict=True):
        if mask.any() and not mask.all():
            assert key[mask].max() <= key[~mask].min()


def test_global_is_one_order_of_all_weights():
    flat = torch.cat(keys())
    lowest = torch.zeros_like(flat, dtype=torch.bool)
    lowest[flat.argsort(stable=True)[:9000]] = True
    assert torch.equal(torch.cat(allocated("global", 9000)), lowest)


def test_uniform_prunes_the_same_share_of_each():
    for size, mask in zip(SIZES, allocated("uniform", 21000), strict=True):
        assert abs(int(mask.sum()) - size * 21000 / sum(SIZES)) < 1


def test_erk_has_the_published_densities():
    """density = factor * (inputs + outputs + width + height) / weights, at most 1."""
    kept = [size - int(mask.sum()) for size, mask in zip(SIZES, allocated("erk", 19000), strict=True)]
    raw = [sum(shape) for shape in SHAPES]
    sparse = [place for place, size in enumerate(SIZES) if kept[place] < size]
    assert sparse == [1, 3]  # the small ones would have more than all of their weights
    factor = sum(kept[place] for place in sparse) / sum(raw[place] for place in sparse)
    for place, size in enumerate(SIZES):
        if place in sparse:
            assert abs(kept[place] - factor * raw[place]) < 1
        else:
            assert factor * raw[place] >= size


@pytest.mark.parametrize("name", ["global", "uniform", "erk"])
def test_what_is_pruned_stays_so_when_the_allocation_changes_and_limits_hold(name):
    scores = keys()
    scores[0] = scores[0] - 2**30  # all of the first layer would go first
    least = [300, 0, 900, 0, 0]
    for key, count in zip(scores, least, strict=True):
        kept = torch.ones_like(key, dtype=torch.bool)
        kept[-count:] = count == 0
        lowest_where(key, kept)
    most = [400, *SIZES[1:]]
    gone = allocated(name, 20000, least, most, scores)
    counts = [int(mask.sum()) for mask in gone]
    assert sum(counts) == 20000
    assert all(a <= count <= b for a, count, b in zip(least, counts, most, strict=True))
    assert gone[0][-300:].all()
    assert gone[2][-900:].all()


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_no_tensor_falls_below_its_floor_and_the_target_is_met(allocation):
    net, optimizer, pruner = pruned_run(allocation=allocation, target=0.8, min_density=0.15)
    train(net, optimizer, 1, 25)
    assert zeros(pruner) == math.ceil(0.8 * sum(weight.numel() for weight in pruner.params))
    for weight in pruner.params:
        assert int((weight != 0).sum()) >= math.ceil(0.15 * weight.numel())
    plain = pruned_run(target=0.8)
    train(*plain[:2], 1, 25)
    assert any((w != 0).sum() < math.ceil(0.15 * w.numel()) for w in plain[2].params)


def test_a_floor_above_the_target_is_refused():
    with pytest.raises(
        ValueError, match=r"min_density=0\.5 leaves at most 0\.\d+ to prune, and the target is 0\.7"
    ):
        Pruner(built("sgd", network()), settings(target=0.7, min_density=0.5))
