"""When and where to prune: schedules and allocations."""

import math
from typing import TYPE_CHECKING

from peakpoint.base.registry import register
from peakpoint.optimizers.pruning.allocation import Budget, in_proportion, within_limits

if TYPE_CHECKING:
    from torch import Tensor


# Schedules: sparsity as a fraction of its target, for progress from 0 to 1.


@register("schedule", "cubic")
def cubic(progress: float) -> float:
    """Fast at first (Zhu & Gupta 2017, arXiv:1710.01878)."""
    return 1 - (1 - progress) ** 3


@register("schedule", "linear")
def linear(progress: float) -> float:
    """Even."""
    return progress


@register("schedule", "convex")
def convex(progress: float) -> float:
    """Slow at first."""
    return progress**3


@register("schedule", "cosine")
def cosine(progress: float) -> float:
    """Slow at both ends."""
    return 0.5 * (1 - math.cos(math.pi * progress))


# Allocations: (the sort keys of each tensor's scores, how many weights go) -> what to prune of each.


@register("allocation", "global")
def lowest_of_all(keys: "list[Tensor]", budget: Budget) -> "list[Tensor]":
    """The lowest scores of all tensors together."""
    return within_limits(keys, budget)


@register("allocation", "uniform")
def uniform(keys: "list[Tensor]", budget: Budget) -> "list[Tensor]":
    """The same share of every tensor."""
    return in_proportion(keys, budget, [key.numel() for key in keys])


@register("allocation", "erk")
def erk(keys: "list[Tensor]", budget: Budget) -> "list[Tensor]":
    """Densities by the dimensions: a tensor keeps weights in proportion to the sum of its dimensions.

    So a small tensor keeps a larger share (Erdos-Renyi-Kernel, Evci et al. 2020, arXiv:1911.11134).
    """
    return in_proportion(keys, budget, [sum(shape) for shape in budget.shapes])
