"""What to prune, when and where: criteria, schedules and allocations."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peakpoint.base.registry import register
from peakpoint.optimizers.pruning.criterion import Context, Criterion

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-8


@register("criterion", "magnitude")
@dataclass(frozen=True)
class Magnitude(Criterion):
    """abs(w) (Han et al. 2015)."""

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        return context.weight.abs()


@register("criterion", "bitter0")
@dataclass(frozen=True)
class Bitter0(Criterion):
    """w^2 * abs(m) / (sqrt(v) + eps): AdamWPrune's first hybrid."""

    needs: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        weight, scale = context.weight, context.moment("exp_avg_sq").sqrt().add_(_EPS)
        # The ratio first: w^2 * abs(m) alone is small enough to underflow.
        return context.moment("exp_avg").abs().div_(scale).mul_(weight).mul_(weight)


@register("criterion", "bitter7")
@dataclass(frozen=True)
class Bitter7(Criterion):
    """abs(w) * (v + eps)^(1/4): recommended by AdamWPrune's author."""

    needs: ClassVar[tuple[str, ...]] = ("exp_avg_sq",)

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        # Two square roots, not pow: they round the same in vector and scalar code, so no score depends on
        # layout.
        root = context.moment("exp_avg_sq").add(_EPS).sqrt_().sqrt_()
        return root.mul_(context.weight.abs())


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


# Allocations: (the sort keys of each tensor's scores, how many weights to prune) -> what to prune.


@register("allocation", "global")
def lowest_of_all(keys: "list[Tensor]", k: int) -> "list[Tensor]":
    """Return the k lowest of all tensors together, as a bool tensor for each."""
    from peakpoint.optimizers.pruning.lowest_k import select_keys

    return select_keys(keys, k)
