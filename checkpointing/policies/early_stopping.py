"""Stop when a metric has not improved for a while, is good enough, or shows a run without hope."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from math import isfinite
from typing import Any

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import EvalEnd, Event
from peakpoint.checkpointing.policies.ranking import (
    Peak,
    check,
    check_count,
    check_metric,
    check_types,
    read_peak,
)
from peakpoint.checkpointing.policy import Decision, Outlook, Policy, Stop, better, order, ranked

log = logging.getLogger("peakpoint")

DIVERGED = "diverged"
"""The beginning of the reason for which a run without hope ends."""


@register("policy", "early_stopping")
@dataclass(kw_only=True)
class EarlyStopping(Policy):
    """Never saves. A value that cannot be ranked (missing, NaN, infinite) is no improvement.

    A metric that was never measured yet does not count at all. `mode` is max or min; `patience` counts
    evaluations; `min_delta` is in units of the metric. A value as good as `stop_at` ends the run, as does one
    as bad as `diverged_at`; None for neither.

    Evaluations before the epoch `from_epoch` count for nothing of this; None: those before the end of the
    pruning ramp, since a peak at a lower sparsity is not comparable, and all of them in a dense training.
    """

    metric: str
    mode: str
    patience: int
    min_delta: float
    stop_at: float | None = None
    diverged_at: float | None = None
    from_epoch: int | None = None

    def __post_init__(self) -> None:
        check_types("early_stopping", self)
        check_metric("early_stopping", self.metric, self.mode, self.min_delta)
        check_count("early_stopping.patience", self.patience)
        for name in ("stop_at", "diverged_at"):
            check(isfinite(getattr(self, name) or 0), f"early_stopping.{name}", getattr(self, name), "finite")
        good, bad = self.stop_at, self.diverged_at
        apart = good is None or bad is None or better(good, bad, self.mode)
        must = f"better than diverged_at={bad} with mode={self.mode}"
        check(apart, "early_stopping.stop_at", good, must)
        check((self.from_epoch or 0) >= 0, "early_stopping.from_epoch", self.from_epoch, "at least 0")
        self._peak: Peak | None = None
        self._waited = 0
        self._ramp_end = 0

    def prepare(self, run: Outlook) -> None:
        """Wait for the end of the pruning ramp, unless `from_epoch` says otherwise."""
        if self.from_epoch is None and run.ramp_end:
            self._ramp_end = run.ramp_end
            log.info("early_stopping counts from the end of the pruning ramp: step %d", run.ramp_end)

    def at_most(self, run: Outlook) -> int:  # noqa: ARG002
        """Return the largest number of checkpoints kept at once."""
        return 0

    @property
    def derived(self) -> dict[str, Any]:
        """Return the step before which evaluations do not count; the configuration says null for it."""
        return {"from_step": self._ramp_end} if self._ramp_end else {}

    @property
    def watched(self) -> Collection[str]:
        """Return the metric that it uses."""
        return (self.metric,)

    def decide(self, event: Event) -> list[Decision]:
        """Stop at a bound, or after `patience` evaluations in a row without improvement."""
        if not isinstance(event, EvalEnd):
            return []
        if event.step < self._ramp_end or event.epoch < (self.from_epoch or 0):
            return []
        if self._peak is None and self.metric not in event.metrics:
            return []  # never measured: the manager warns of it, and it is no lack of improvement
        value, peak = ranked(event.metrics, self.metric), self._peak
        if value is not None and (bound := self._bound(value, event.epoch)):
            return [Stop(bound)]
        if value is not None and better(value, peak and peak["value"], self.mode, self.min_delta):
            self._peak, self._waited = Peak(value=value, epoch=event.epoch), 0
            return []
        self._waited += 1
        return [Stop(self._reason())] if self._waited >= self.patience else []

    def _bound(self, value: float, epoch: int) -> str | None:
        """Return which bound a value has reached at an epoch, in words."""
        at, mode = order(value, self.mode), self.mode
        if self.stop_at is not None and at >= order(self.stop_at, mode):
            return f"{self.metric} {value:.4f} has reached stop_at={self.stop_at:g} at epoch {epoch}"
        if self.diverged_at is not None and at <= order(self.diverged_at, mode):
            bound = f"diverged_at={self.diverged_at:g}"
            return f"{DIVERGED} at epoch {epoch}: {self.metric} {value:.4f} has reached {bound}"
        return None

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
