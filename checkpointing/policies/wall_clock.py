"""Save at a period of minutes, for runs whose epochs take hours."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import Event, StepEnd
from peakpoint.checkpointing.policies.ranking import check, check_count, check_types, newest
from peakpoint.checkpointing.policy import Decision, Outlook, Policy, Save
from peakpoint.checkpointing.storage.manifest import Manifest


@register("policy", "wall_clock")
@dataclass(kw_only=True)
class WallClock(Policy):
    """Saves at the first step after a period of `minutes`, None for never; `keep_last` counts checkpoints.

    It has no state: a checkpoint must not depend on the clock, so a resumed run starts a new period.
    """

    minutes: float | None
    keep_last: int

    tag = "wall_clock"
    tags = (tag,)

    def __post_init__(self) -> None:
        check_types("wall_clock", self)
        check(self.minutes is None or self.minutes > 0, "wall_clock.minutes", self.minutes, "above 0")
        check_count("wall_clock.keep_last", self.keep_last)
        self._since = time.monotonic()

    def at_most(self, run: Outlook) -> int:  # noqa: ARG002
        """Return the largest number of checkpoints kept at once."""
        return self.keep_last if self.minutes else 0

    def decide(self, event: Event) -> list[Decision]:
        """Save when the period has passed at a step."""
        minutes = self.minutes
        if minutes is None or not isinstance(event, StepEnd):
            return []
        now = time.monotonic()
        if now - self._since < 60 * minutes:
            return []
        self._since = now
        return [Save(self.tag, f"{minutes:g} minutes have passed")]

    def keeps(self, manifests: Sequence[Manifest]) -> dict[Manifest, str]:
        """Return its `keep_last` newest checkpoints."""
        return newest(manifests, self.tag, self.keep_last)
