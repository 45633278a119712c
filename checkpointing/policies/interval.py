"""Save at a period of epochs or steps; keep the last few, and every n-th for good."""

from collections.abc import Sequence
from dataclasses import dataclass

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import EpochEnd, Event, StepEnd
from peakpoint.checkpointing.policies.ranking import check, check_count, check_types, newest
from peakpoint.checkpointing.policy import Decision, Outlook, Policy, Save
from peakpoint.checkpointing.storage.manifest import Manifest


@register("policy", "interval")
@dataclass(kw_only=True)
class Interval(Policy):
    """Rolling training checkpoints at fixed periods.

    `epochs` and `steps` are periods, None for never; `keep_last` counts checkpoints. Every
    `keep_every`-th save of a period stays for good, None for none (Orbax names this `keep_period`).
    """

    epochs: int | None
    steps: int | None
    keep_last: int
    keep_every: int | None = None

    tag = "interval"
    for_good = "interval_kept"
    tags = (tag, for_good)

    def __post_init__(self) -> None:
        check_types("interval", self)
        check_count("interval.epochs", self.epochs)
        check_count("interval.steps", self.steps)
        check_count("interval.keep_last", self.keep_last)
        check_count("interval.keep_every", self.keep_every)
        works = self.keep_every is None or bool(self.epochs or self.steps)
        check(works, "interval.keep_every", self.keep_every, "null where epochs and steps are")

    def at_most(self, run: Outlook) -> int:
        """Return the largest number of checkpoints kept at once."""
        by_epoch = run.epochs // self.epochs if self.epochs else 0
        by_step = run.steps // self.steps if self.steps else 0
        saved = by_epoch + by_step
        stay = by_epoch // self.keep_every + by_step // self.keep_every if self.keep_every else 0
        return min(saved, self.keep_last + stay)

    def decide(self, event: Event) -> list[Decision]:
        """Save when the number of whole epochs or of steps is a multiple of its period."""
        if isinstance(event, StepEnd):
            done, period, what = event.step, self.steps, f"step {event.step}"
        elif isinstance(event, EpochEnd):
            done = event.epoch if event.done is None else event.done
            period, what = self.epochs, f"epoch {event.epoch}"
        else:
            return []
        if period is None or done % period:
            return []
        saves: list[Decision] = [Save(self.tag, f"{what}, every {period}")]
        if self.keep_every and done % (period * self.keep_every) == 0:
            saves.append(Save(self.for_good, f"{what}, every {period * self.keep_every}, for good"))
        return saves

    def keeps(self, manifests: Sequence[Manifest]) -> dict[Manifest, str]:
        """Return its `keep_last` newest checkpoints, and those that stay for good."""
        kept = newest(manifests, self.tag, self.keep_last)
        if self.keep_every:
            stay = newest(manifests, self.for_good, len(manifests))
            kept |= dict.fromkeys(stay, "kept for good by interval")
        return kept
