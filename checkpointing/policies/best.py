"""Save whenever a metric is better than ever before."""

from dataclasses import dataclass
from typing import Any

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import EvalEnd, Event
from peakpoint.checkpointing.policies.ranking import (
    Ranked,
    Role,
    check,
    check_count,
    check_metric,
    check_types,
)
from peakpoint.checkpointing.policy import Decision, Outlook, ranked
from peakpoint.checkpointing.storage.naming import safe_name


@dataclass(kw_only=True)
class Metric:
    """`mode` is max or min; better means better by more than `min_delta`."""

    mode: str
    min_delta: float


@register("policy", "best")
@dataclass(kw_only=True)
class Best(Ranked):
    """Milestones by metric. An unranked value (missing, NaN, infinite) is counted and never best.

    `metrics` are by name; of each the `keep` best are kept, None for every improvement.
    """

    metrics: dict[str, Metric]
    keep: int | None

    def __post_init__(self) -> None:
        check_types("best", self)
        check(len(self.metrics) > 0, "best.metrics", "{}", "one metric or more")
        check_count("best.keep", self.keep)
        for name, metric in self.metrics.items():
            check_metric(f"best.metrics.{name}", name, metric.mode, metric.min_delta)
        self.roles = {
            name: Role(safe_name(f"best_{name}"), name, metric.mode, metric.min_delta)
            for name, metric in self.metrics.items()
        }
        different = len(self.tags) == len(self.metrics)
        check(different, "best.metrics", list(self.metrics), "names of different files")
        self._unranked = dict.fromkeys(self.metrics, 0)
        super().__post_init__()

    def at_most(self, run: Outlook) -> int:
        """Return the largest number of checkpoints kept at once."""
        return len(self.metrics) * min(run.evaluations, self.keep or run.evaluations)

    def decide(self, event: Event) -> list[Decision]:
        """Return a save for each metric that improved."""
        decisions: list[Decision] = []
        if not isinstance(event, EvalEnd):
            return decisions
        for name in self.metrics:
            value = ranked(event.metrics, name)
            if value is None:
                self._unranked[name] += 1
            else:
                decisions += self.improved(name, value, event.epoch, name)
        return decisions

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its epoch, and the count of unranked values, by metric."""
        return {**super().state_dict(), "unranked": dict(self._unranked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters of the metrics that are still configured; a new metric has none."""
        super().load_state_dict(state)
        self._unranked |= {n: int(c) for n, c in state["unranked"].items() if n in self.metrics}
