"""How to prune: the target, the ramp and the components, by steps of the run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peakpoint.base import registry
from peakpoint.optimizers import catalogue  # noqa: F401 (registers)
from peakpoint.optimizers.pruning.pattern import parsed
from peakpoint.optimizers.pruning.regrow import GROWTHS, Regrowth


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSettings:
    """How to prune. Steps count those of the run from 1, also those that were skipped.

    `target` is the final sparsity, a fraction of all prunable weights. The ramp runs from `initial`, the
    sparsity of the network at `begin`, with an update every `frequency` steps from `start_step` to `end_step`
    and one at the end. The options are the settings of the three components. `min_density` is the fraction of
    each tensor that is always kept. `pattern` is N:M, whose target is 1 - N / M. With `regrow` (gradient or
    random) each update until the step `regrow_until` exchanges some of the kept weights: the fraction
    `regrow_fraction` at the start, less by a cosine after. Raises ValueError for steps or a target that are
    no ramp upwards, for an unknown component, and for options that do not exist or do not go together.
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
    criterion_options: Mapping[str, Any] = field(default_factory=dict)
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    allocation_options: Mapping[str, Any] = field(default_factory=dict)
    min_density: float = 0.0
    pattern: str | None = None
    regrow: str = "none"
    regrow_fraction: float = 0.3
    regrow_until: int = 0

    def made(self, kind: str) -> Any:
        """Return the `criterion`, the `schedule` or the `allocation` with its options."""
        return registry.make(kind, getattr(self, kind), getattr(self, f"{kind}_options"))

    def __post_init__(self) -> None:
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
        if self.regrow not in ("none", *GROWTHS):
            raise ValueError(f"pruning.regrow={self.regrow} is none of none, {', '.join(GROWTHS)}.")
        if self.pattern is None:
            return
        limit = parsed(self.pattern).target
        if self.regrow != "none":
            raise ValueError(f"The pattern {self.pattern} leaves no place to regrow: use one of the two.")
        if self.min_density:
            raise ValueError(f"The pattern {self.pattern} says what is kept: leave min_density out.")
        if self.target > limit:
            raise ValueError(
                f"The pattern {self.pattern} prunes {limit:g}, less than the target {self.target:g}."
            )

    @property
    def regrowth(self) -> Regrowth | None:
        """Return how many weights are exchanged at which step; None where pruned weights stay pruned."""
        if self.regrow == "none":
            return None
        return Regrowth(fraction=self.regrow_fraction, start=self.start_step, until=self.regrow_until)

    def exchanged_at(self, step: int) -> float:
        """Return the fraction of the kept weights of each tensor that the update after `step` exchanges."""
        return self.regrowth.at(step) if self.regrowth else 0.0

    def sparsity_at(self, step: int) -> float:
        """Return the sparsity that the schedule asks for after `step` steps."""
        if step >= self.end_step:
            return self.target
        if step <= self.start_step:
            return self.initial
        progress = (step - self.start_step) / (self.end_step - self.start_step)
        fraction: float = self.made("schedule")(progress)
        return self.initial + (self.target - self.initial) * fraction

    def due(self, step: int, sparsity: float) -> bool:
        """Return whether to update after `step` steps, with `sparsity` reached so far.

        Past the end an update is due to exchange weights, or to catch up, as after a resume with a shorter
        ramp.
        """
        on_beat = (step - self.start_step) % self.frequency == 0
        if step > self.end_step:
            return sparsity < self.target or (on_beat and self.exchanged_at(step) > 0)
        return step >= self.start_step and (on_beat or step == self.end_step)
