"""Save whenever a metric is better than ever before."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import EvalEnd, Event
from peakpoint.checkpointing.policies import ranking
from peakpoint.checkpointing.policies.ranking import (
    Peak,
    check,
    check_count,
    check_min_delta,
    check_mode,
    check_types,
)
from peakpoint.checkpointing.policy import Decision, Outlook, Policy, PolicySettings, Save, better, ranked
from peakpoint.checkpointing.storage.manifest import MILESTONE, Manifest
from peakpoint.checkpointing.storage.naming import safe_name


@dataclass(kw_only=True)
class Metric:
    """`mode` is max or min; better means better by more than `min_delta`."""

    mode: str
    min_delta: float


@register("policy", "best")
@dataclass(kw_only=True)
class BestSettings(PolicySettings):
    """The metrics by name; `keep` is how many of the best of each to keep, None for every improvement."""

    metrics: dict[str, Metric]
    keep: int | None

    def __post_init__(self) -> None:
        check_types("best", self)
        check(len(self.metrics) > 0, "best.metrics", "{}", "one metric or more")
        roles = {safe_name(name) for name in self.metrics}
        check(len(roles) == len(self.metrics), "best.metrics", list(self.metrics), "names of different files")
        for name, metric in self.metrics.items():
            check_mode(f"best.metrics.{name}.mode", metric.mode)
            check_min_delta(f"best.metrics.{name}.min_delta", metric.min_delta)
        check_count("best.keep", self.keep)

    def build(self) -> "Best":
        """The policy, which has seen nothing yet."""
        return Best(self)

    def at_most(self, run: Outlook) -> int:
        """How many checkpoints the policy keeps at once, at most."""
        return len(self.metrics) * min(run.epochs, self.keep or run.epochs)


class Best(Policy):
    """Milestones by metric. An unranked value (missing, NaN, infinite) is counted and never best."""

    def __init__(self, settings: BestSettings) -> None:
        self.settings = settings
        for name, metric in settings.metrics.items():
            ranking.warn_of_mode(name, metric.mode)
        self._peaks: dict[str, Peak] = {}
        self._unranked = dict.fromkeys(settings.metrics, 0)

    @property
    def tags(self) -> Collection[str]:
        """The roles that it gives out."""
        return {_tag(name) for name in self.settings.metrics}

    @property
    def watched(self) -> Collection[str]:
        """The metrics that it goes by."""
        return self.settings.metrics

    def decide(self, event: Event) -> list[Decision]:
        """A save for each metric that improved."""
        decisions: list[Decision] = []
        if not isinstance(event, EvalEnd):
            return decisions
        for name, metric in self.settings.metrics.items():
            value, peak = ranked(event.metrics, name), self._peaks.get(name)
            if value is None:
                self._unranked[name] += 1
            elif better(value, peak and peak["value"], metric.mode, metric.min_delta):
                self._peaks[name] = Peak(value=value, epoch=event.epoch)
                reason = f"{name} {ranking.comparison(value, peak)}"
                role = _tag(name)
                decisions.append(Save(role, reason, MILESTONE, ranking.stem(role, value, event.epoch)))
        return decisions

    def keeps(self, manifests: Sequence[Manifest]) -> dict[Manifest, str]:
        """For each metric the best `keep` of its own, the current best among them."""
        kept: dict[Manifest, str] = {}
        for name, metric in self.settings.metrics.items():
            found = ranking.best(
                manifests,
                tag=_tag(name),
                metric=name,
                mode=metric.mode,
                keep=self.settings.keep,
                peak=self._peaks.get(name),
            )
            kept |= {m: f"{kept[m]}; {why}" if m in kept else why for m, why in found.items()}
        return kept

    def reconcile(self, manifests: Sequence[Manifest]) -> list[str]:
        """Count as best only what some checkpoint holds; returns what is lost."""
        roles = {name: (_tag(name), name, metric.mode) for name, metric in self.settings.metrics.items()}
        return ranking.reconcile(self._peaks, roles, manifests)

    def state_dict(self) -> dict[str, Any]:
        """The best value and its epoch, and the count of unranked values, by metric."""
        return {
            "best": {name: dict(peak) for name, peak in self._peaks.items()},
            "unranked": dict(self._unranked),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters of the metrics that are still configured; a new metric starts from nothing."""
        names = self.settings.metrics
        self._peaks = {n: ranking.read_peak(p) for n, p in state["best"].items() if n in names}
        self._unranked = dict.fromkeys(names, 0) | {
            n: int(c) for n, c in state["unranked"].items() if n in names
        }


def _tag(metric: str) -> str:
    return safe_name(f"best_{metric}")
