"""What to prune, how much and when: criteria, schedules, allocations, and the settings that name them.

Importing it does not import torch, so that a wrong name is found at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peakpoint.base.text import closest

if TYPE_CHECKING:
    from torch import Tensor

    State = Mapping[str, Tensor]

_EPS = 1e-8


@dataclass(frozen=True, slots=True)
class Criterion:
    """A score for each weight; the lowest are pruned.

    `score(weight, state)` returns a new tensor of the weight's shape. `state` is the optimizer's state of
    that weight, empty before its first gradient. A criterion with `needs_moments` reads exp_avg and
    exp_avg_sq, which optimizers of the Adam family have.
    """

    name: str
    description: str
    needs_moments: bool
    score: Callable[[Tensor, State], Tensor]


def _moment(weight: Tensor, state: State, name: str) -> Tensor:
    """A moment of the weight, zero when it never had a gradient."""
    import torch

    return state[name] if state else torch.zeros_like(weight)


def _magnitude(weight: Tensor, state: State) -> Tensor:  # noqa: ARG001
    return weight.abs()


def _bitter0(weight: Tensor, state: State) -> Tensor:
    scale = _moment(weight, state, "exp_avg_sq").sqrt().add_(_EPS)
    # The ratio first: w^2 * abs(m) alone is small enough to underflow.
    return _moment(weight, state, "exp_avg").abs().div_(scale).mul_(weight).mul_(weight)


def _bitter7(weight: Tensor, state: State) -> Tensor:
    # Two square roots, not pow: they round the same in vector and scalar code, so no score depends on layout.
    root = _moment(weight, state, "exp_avg_sq").add(_EPS).sqrt_().sqrt_()
    return root.mul_(weight.abs())


CRITERIA = {
    record.name: record
    for record in (
        Criterion("magnitude", "abs(w) (Han et al. 2015)", False, _magnitude),
        Criterion("bitter0", "w^2 * abs(m) / (sqrt(v) + eps): AdamWPrune's first hybrid", True, _bitter0),
        Criterion("bitter7", "abs(w) * (v + eps)^(1/4): recommended by AdamWPrune's author", True, _bitter7),
    )
}

# Sparsity as a fraction of its target, for progress from 0 to 1.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cubic": lambda p: 1 - (1 - p) ** 3,  # Zhu & Gupta 2017, arXiv:1710.01878
    "linear": lambda p: p,
    "convex": lambda p: p**3,
    "cosine": lambda p: 0.5 * (1 - math.cos(math.pi * p)),
}


def _global(keys: list[Tensor], k: int) -> list[Tensor]:
    from peakpoint.optimizers.pruning.lowest_k import select_keys

    return select_keys(keys, k)


# How the pruned weights are spread over the tensors: (sort keys of each tensor, k) -> what to prune.
ALLOCATIONS: dict[str, Callable[[list[Tensor], int], list[Tensor]]] = {"global": _global}


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSettings:
    """How to prune. Steps count those of the run from 1, also those that were skipped.

    `target` is the final sparsity, a fraction of all prunable weights. The ramp runs from `initial`, the
    sparsity of the network at `begin`, with an update every `frequency` steps from `start_step` to `end_step`
    and one at the end. Raises ValueError for a value out of range or a name that is not in CRITERIA,
    SCHEDULES or ALLOCATIONS.
    """

    criterion: str
    target: float
    start_step: int
    end_step: int
    frequency: int
    schedule: str
    allocation: str
    begin: int = 0
    initial: float = 0.0

    def __post_init__(self) -> None:
        _known("criterion", self.criterion, CRITERIA)
        _known("schedule", self.schedule, SCHEDULES)
        _known("allocation", self.allocation, ALLOCATIONS)
        if not 0 <= self.target < 1:
            raise ValueError(f"The pruning target {self.target} must be at least 0 and below 1.")
        if self.frequency < 1:
            raise ValueError(f"The pruning frequency {self.frequency} must be at least 1 step.")
        if not 0 <= self.initial <= self.target:
            raise ValueError(
                f"The pruning target {self.target:g} is below the sparsity of the network, {self.initial:g}: "
                "pruned weights stay pruned."
            )
        if not 0 <= self.begin <= self.start_step <= self.end_step:
            raise ValueError(
                f"Pruning from step {self.start_step} to step {self.end_step} is not a ramp: "
                f"the start must be at least {self.begin} and at most the end."
            )

    def sparsity_at(self, step: int) -> float:
        """The sparsity that the schedule asks for after `step` steps."""
        if step >= self.end_step:
            return self.target
        if step <= self.start_step:
            return self.initial
        progress = (step - self.start_step) / (self.end_step - self.start_step)
        return self.initial + (self.target - self.initial) * SCHEDULES[self.schedule](progress)

    def due(self, step: int, sparsity: float) -> bool:
        """Whether to update after `step` steps, with `sparsity` reached so far.

        Past the end an update is due only to catch up, as after a resume with a shorter ramp.
        """
        if step > self.end_step:
            return sparsity < self.target
        on_beat = (step - self.start_step) % self.frequency == 0
        return step >= self.start_step and (on_beat or step == self.end_step)


def _known(kind: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        near = closest(name, names)
        hint = f" Did you mean {near}?" if near else ""
        raise ValueError(f"There is no pruning {kind} named {name!r}.{hint} There are: {', '.join(names)}.")
