"""Learning rates over a run, as a factor that is a pure function of the run's step, taken or skipped.

Being a function of one integer, a schedule needs no state of its own: a resumed run continues it exactly,
and a run whose length was changed follows the new one. `step` counts from 0, the first step of a run, so
the last is `total - 1`, which gets the final value; past the end the factor stays there.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

from peakpoint.base.given import require_range
from peakpoint.base.registry import register
from peakpoint.optimizers.settings import Factor, Scheduler


def _warm(step: int, warmup: int) -> float:
    """Return the linear warm-up over the first `warmup` steps: 1/warmup, 2/warmup, ..., 1."""
    return 1.0 if step >= warmup else (step + 1) / warmup


def _progress(step: int, start: int, end: int) -> float:
    """Return how far `step` is from `start` to `end`, from 0 to 1."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))


@register("scheduler", "constant")
@dataclass(kw_only=True)
class Constant(Scheduler):
    """The full rate after the warm-up."""

    def build(self, total: int, warmup: int) -> Factor:  # noqa: ARG002
        """Return the factor as a function of the step."""
        return lambda step: _warm(step, warmup)


@register("scheduler", "cosine")
@dataclass(kw_only=True)
class Cosine(Scheduler):
    """Half a cosine from 1 after the warm-up to `final_factor` at the last step (arXiv:1608.03983)."""

    final_factor: float

    def __post_init__(self) -> None:
        Scheduler.__post_init__(self)
        require_range(self, "scheduler.", 0, 1, "final_factor")

    def build(self, total: int, warmup: int) -> Factor:
        """Return the factor as a function of the step."""

        def factor(step: int) -> float:
            if step < warmup:
                return _warm(step, warmup)
            fall = 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total - 1)))
            return self.final_factor + (1 - self.final_factor) * fall

        return factor


@register("scheduler", "multistep")
@dataclass(kw_only=True)
class MultiStep(Scheduler):
    """Multiplied by `gamma` at each milestone, which is a fraction of the run."""

    milestones: list[float]
    gamma: float

    def __post_init__(self) -> None:
        Scheduler.__post_init__(self)
        require_range(self, "scheduler.", 0, 1, "gamma")
        if self.milestones != sorted(self.milestones) or not all(0 <= m <= 1 for m in self.milestones):
            raise ValueError(
                f"scheduler.milestones={self.milestones} must be rising fractions of the run, from 0 to 1."
            )

    def build(self, total: int, warmup: int) -> Factor:
        """Return the factor as a function of the step."""
        steps = [round(fraction * total) for fraction in self.milestones]
        return lambda step: _warm(step, warmup) * self.gamma ** bisect_right(steps, step)


@register("scheduler", "one_cycle")
@dataclass(kw_only=True)
class OneCycle(Scheduler):
    """Linear from `initial_factor` to 1 at `peak_fraction` of the run, then to `final_factor` (Smith 2018).

    It has its own rise (arXiv:1803.09820); a warm-up, if any, multiplies it.
    """

    peak_fraction: float
    initial_factor: float
    final_factor: float

    def __post_init__(self) -> None:
        Scheduler.__post_init__(self)
        require_range(self, "scheduler.", 0, 1, "peak_fraction initial_factor final_factor")

    def build(self, total: int, warmup: int) -> Factor:
        """Return the factor as a function of the step."""
        peak = round(self.peak_fraction * (total - 1))

        def factor(step: int) -> float:
            if step < peak:
                rate = self.initial_factor + (1 - self.initial_factor) * step / peak
            else:
                rate = 1 + (self.final_factor - 1) * _progress(step, peak, total - 1)
            return _warm(step, warmup) * rate

        return factor
