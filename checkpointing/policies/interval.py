"""Save at a period of epochs or steps, and keep the last few."""

from collections.abc import Sequence
from dataclasses import dataclass

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import EpochEnd, Event, StepEnd
from peakpoint.checkpointing.policies.ranking import check_count, check_types, newest
from peakpoint.checkpointing.policy import Decision, Outlook, Policy, Save
from peakpoint.checkpointing.storage.manifest import Manifest


@register("policy", "interval")
@dataclass(kw_only=True)
class Interval(Policy):
    """Rolling training checkpoints at fixed periods.

    `epochs` and `steps` are periods, None for never; `keep_last` counts checkpoints.
    """

    epochs: int | None
    steps: int | None
    keep_last: int

    tag = "interval"
    tags = (tag,)

    def __post_init__(self) -> None:
        check_types("interval", self)
        check_count("interval.epochs", self.epochs)
        check_count("interval.steps", self.steps)
        check_count("interval.keep_last", self.keep_last)

    def at_most(self, run: Outlook) -> int:
        """Return the largest number of checkpoints kept at once."""
        by_epoch = run.epochs // self.epochs if self.epochs else 0
        by_step = run.steps // self.steps if self.steps else 0
        return min(self.keep_last, by_epoch + by_step)

    def decide(self, event: Event) -> list[Decision]:
        """Save when the number of whole epochs or of steps is a multiple of its period."""
        epochs, steps = self.epochs, self.steps
        if isinstance(event, StepEnd) and steps is not None and event.step % steps == 0:
            return [Save(self.tag, f"step {event.step}, every {steps}")]
        if not isinstance(event, EpochEnd) or epochs is None:
            return []
        if (event.epoch if event.done is None else event.done) % epochs == 0:
            return [Save(self.tag, f"epoch {event.epoch}, every {epochs}")]
        return []

    def keeps(self, manifests: Sequence[Manifest]) -> dict[Manifest, str]:
        """Return its `keep_last` newest checkpoints."""
        return newest(manifests, self.tag, self.keep_last)
