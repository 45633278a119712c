"""Stop when a metric has not improved for a while."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import EvalEnd, Event
from peakpoint.checkpointing.policies.ranking import Peak, check_count, check_metric, check_types, read_peak
from peakpoint.checkpointing.policy import Decision, Outlook, Policy, Stop, better, ranked


@register("policy", "early_stopping")
@dataclass(kw_only=True)
class EarlyStopping(Policy):
    """Never saves. A value that cannot be ranked (missing, NaN, infinite) is no improvement.

    A metric that was never measured yet does not count at all. `mode` is max or min; `patience` counts
    evaluations; `min_delta` is in units of the metric.
    """

    metric: str
    mode: str
    patience: int
    min_delta: float

    def __post_init__(self) -> None:
        check_types("early_stopping", self)
        check_metric("early_stopping", self.metric, self.mode, self.min_delta)
        check_count("early_stopping.patience", self.patience)
        self._peak: Peak | None = None
        self._waited = 0

    def at_most(self, run: Outlook) -> int:  # noqa: ARG002
        """Return the largest number of checkpoints kept at once."""
        return 0

    @property
    def watched(self) -> Collection[str]:
        """Return the metric that it uses."""
        return (self.metric,)

    def decide(self, event: Event) -> list[Decision]:
        """Stop after `patience` evaluations in a row without improvement."""
        if not isinstance(event, EvalEnd):
            return []
        if self._peak is None and self.metric not in event.metrics:
            return []  # never measured: the manager warns of it, and it is no lack of improvement
        value, peak = ranked(event.metrics, self.metric), self._peak
        if value is not None and better(value, peak and peak["value"], self.mode, self.min_delta):
            self._peak, self._waited = Peak(value=value, epoch=event.epoch), 0
            return []
        self._waited += 1
        return [Stop(self._reason())] if self._waited >= self.patience else []

    def _reason(self) -> str:
        metric, min_delta = self.metric, self.min_delta
        if self._peak is None:
            return f"{metric} was not finite in all {self._waited} evaluations"
        return (
            f"{metric} has not improved by more than {min_delta:g} for {self._waited} evaluations; "
            f"best {self._peak['value']:.4f} at epoch {self._peak['epoch']}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the best value, its epoch, and the number of evaluations since."""
        return {"best": None if self._peak is None else dict(self._peak), "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters; a changed patience applies to them."""
        self._peak = None if state["best"] is None else read_peak(state["best"])
        self._waited = int(state["waited"])
