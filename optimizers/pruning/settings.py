"""The settings of pruning in steps. Importing it does not import torch."""

from dataclasses import dataclass

from peakpoint.base import registry
from peakpoint.optimizers import catalogue  # noqa: F401 (registers)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSettings:
    """How to prune. Steps count those of the run from 1, also those that were skipped.

    `target` is the final sparsity, a fraction of all prunable weights. The ramp runs from `initial`, the
    sparsity of the network at `begin`, with an update every `frequency` steps from `start_step` to `end_step`
    and one at the end. Raises ValueError for steps or a target that are no ramp upwards.
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
        fraction: float = registry.find("schedule", self.schedule)(progress)
        return self.initial + (self.target - self.initial) * fraction

    def due(self, step: int, sparsity: float) -> bool:
        """Whether to update after `step` steps, with `sparsity` reached so far.

        Past the end an update is due only to catch up, as after a resume with a shorter ramp.
        """
        if step > self.end_step:
            return sparsity < self.target
        on_beat = (step - self.start_step) % self.frequency == 0
        return step >= self.start_step and (on_beat or step == self.end_step)
