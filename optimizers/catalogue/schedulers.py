"""Learning rates over a run."""

from dataclasses import dataclass

from peakpoint.base.given import require_range
from peakpoint.base.registry import register
from peakpoint.optimizers import schedule
from peakpoint.optimizers.settings import Scheduler


@register("scheduler", "constant")
@dataclass(kw_only=True)
class Constant(Scheduler):
    """The full rate after the warm-up."""

    def build(self, total: int, warmup: int) -> schedule.Factor:
        """The factor as a function of the step."""
        return schedule.constant(total, warmup)


@register("scheduler", "cosine")
@dataclass(kw_only=True)
class Cosine(Scheduler):
    """Half a cosine from the peak to `final_factor` of it."""

    final_factor: float

    def __post_init__(self) -> None:
        Scheduler.__post_init__(self)
        require_range(self, "scheduler.", 0, 1, "final_factor")

    def build(self, total: int, warmup: int) -> schedule.Factor:
        """The factor as a function of the step."""
        return schedule.cosine(total, warmup, self.final_factor)


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

    def build(self, total: int, warmup: int) -> schedule.Factor:
        """The factor as a function of the step."""
        return schedule.multistep(total, warmup, self.milestones, self.gamma)


@register("scheduler", "one_cycle")
@dataclass(kw_only=True)
class OneCycle(Scheduler):
    """Rises to the peak over `peak_fraction` of the run, then falls to `final_factor` (Smith 2018)."""

    peak_fraction: float
    initial_factor: float
    final_factor: float

    def __post_init__(self) -> None:
        Scheduler.__post_init__(self)
        require_range(self, "scheduler.", 0, 1, "peak_fraction initial_factor final_factor")

    def build(self, total: int, warmup: int) -> schedule.Factor:
        """The factor as a function of the step."""
        return schedule.one_cycle(total, warmup, self.peak_fraction, self.initial_factor, self.final_factor)
