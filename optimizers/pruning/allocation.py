"""The contract of an allocation: which weights are pruned, of which tensor how many."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Budget:
    """How many weights an update leaves pruned.

    It is `k` in all: of the tensor of `shapes[i]` at least `least[i]`, which are pruned already, and at most
    `most[i]`. The `least` add up to no more than k, and the `most` to no less.
    """

    k: int
    shapes: Sequence[tuple[int, ...]]
    least: Sequence[int]
    most: Sequence[int]


Allocation = Callable[["list[Tensor]", Budget], "list[Tensor]"]
"""Takes the sort keys of each tensor's scores (1-D int32), returns what to prune of each, as 1-D bool.

Keys of weights that are pruned already are the lowest of all.
"""


def within_limits(keys: "list[Tensor]", budget: Budget) -> "list[Tensor]":
    """Return the k lowest keys of all tensors together, of each tensor at most what it may lose.

    A tensor that would lose more loses exactly that, its lowest, and the others make up for it.
    """
    from peakpoint.optimizers.pruning.lowest_k import select_keys

    chosen: dict[int, Tensor] = {}
    left = budget.k
    while True:
        rest = [place for place in range(len(keys)) if place not in chosen]
        lowest = select_keys([keys[place] for place in rest], left)
        full = [
            place
            for place, mask in zip(rest, lowest, strict=True)
            if budget.most[place] < mask.numel() and int(mask.sum()) > budget.most[place]
        ]
        if not full:
            chosen |= zip(rest, lowest, strict=True)
            return [chosen[place] for place in range(len(keys))]
        for place in full:
            chosen[place] = select_keys([keys[place]], budget.most[place])[0]
            left -= budget.most[place]


def in_proportion(keys: "list[Tensor]", budget: Budget, kept: Sequence[float]) -> "list[Tensor]":
    """Return the lowest keys of each tensor, where what the tensors keep is proportional to `kept`."""
    from peakpoint.optimizers.pruning.lowest_k import select_keys

    sizes = [key.numel() for key in keys]
    keeps = shares(
        sum(sizes) - budget.k,
        kept,
        [size - most for size, most in zip(sizes, budget.most, strict=True)],
        [size - least for size, least in zip(sizes, budget.least, strict=True)],
    )
    return [select_keys([key], size - keep)[0] for key, size, keep in zip(keys, sizes, keeps, strict=True)]


def shares(total: int, weights: Sequence[float], low: Sequence[int], high: Sequence[int]) -> list[int]:
    """Return whole numbers that add up to `total`, in proportion to the weights within their limits.

    Each is less than 1 from factor * weight, brought between its `low` and its `high`, for the one factor
    that gives the total. The largest remainders are rounded up, the first of equal ones.
    """

    def exact(factor: float) -> list[float]:
        return [
            min(max(factor * weight, least), most)
            for weight, least, most in zip(weights, low, high, strict=True)
        ]

    below, above = 0.0, max(most / weight for weight, most in zip(weights, high, strict=True))
    if sum(high) <= total:
        below = above
    for _ in range(200):  # halving until no float lies between the two
        middle = (below + above) / 2
        if middle in (below, above):
            break
        below, above = (middle, above) if sum(exact(middle)) <= total else (below, middle)
    found = exact(below)
    whole = [int(value) for value in found]
    by_remainder = sorted(range(len(found)), key=lambda place: whole[place] - found[place])
    for place in by_remainder[: total - sum(whole)]:
        whole[place] += 1
    return whole
