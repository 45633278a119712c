"""Keep the k best checkpoints by one metric, for ensembles and averages."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import EvalEnd, Event
from peakpoint.checkpointing.policies import ranking
from peakpoint.checkpointing.policies.ranking import Peak, check_count, check_metric, check_types
from peakpoint.checkpointing.policy import Decision, Outlook, Policy, Save, better, order, ranked
from peakpoint.checkpointing.storage.manifest import MILESTONE, Manifest


@register("policy", "top_k")
@dataclass(kw_only=True)
class TopK(Policy):
    """Saves when a value is among the `k` best so far; `mode` is max or min. Of equals the earlier stays."""

    metric: str
    mode: str
    k: int

    tag = "top_k"
    tags = (tag,)

    def __post_init__(self) -> None:
        check_types("top_k", self)
        check_metric("top_k", self.metric, self.mode)
        check_count("top_k.k", self.k)
        self._peaks: list[Peak] = []  # best first
        self._unranked = 0

    def at_most(self, run: Outlook) -> int:
        """Return the largest number of checkpoints kept at once."""
        return min(run.evaluations, self.k)

    @property
    def watched(self) -> Collection[str]:
        """Return the metric that it uses."""
        return (self.metric,)

    def decide(self, event: Event) -> list[Decision]:
        """Save when fewer than k values so far are as good."""
        if not isinstance(event, EvalEnd):
            return []
        metric, mode, k = self.metric, self.mode, self.k
        value = ranked(event.metrics, metric)
        if value is None:
            self._unranked += 1
            return []
        place = sum(not better(value, peak["value"], mode) for peak in self._peaks)
        if place >= k:
            return []
        self._peaks.insert(place, Peak(value=value, epoch=event.epoch))
        del self._peaks[k:]
        reason = f"{metric} {value:.4f} is number {place + 1} of the best {k}"
        return [Save(self.tag, reason, MILESTONE, ranking.stem(f"{self.tag}_{metric}", value, event.epoch))]

    def keeps(self, manifests: Sequence[Manifest]) -> dict[Manifest, str]:
        """Return its k best checkpoints."""
        metric, mode, k = self.metric, self.mode, self.k
        pairs = ranking.scored(manifests, self.tag, metric)
        pairs.sort(key=lambda pair: (-order(pair[0], mode), pair[1].sequence))
        return {
            m: f"number {n} of the best {k} by {metric}: {value:.4f}"
            for n, (value, m) in enumerate(pairs[:k], 1)
        }

    def reconcile(self, manifests: Sequence[Manifest]) -> list[str]:
        """Drop values without a checkpoint, unless k checkpoints are as good; returns a clause for each."""
        metric, mode, k = self.metric, self.mode, self.k
        there = [value for value, _ in ranking.scored(manifests, self.tag, metric)]
        gone = [
            peak
            for peak in self._peaks
            if peak["value"] not in there and sum(not better(peak["value"], v, mode) for v in there) < k
        ]
        self._peaks = [peak for peak in self._peaks if peak not in gone]
        return [
            f"{p['value']:.4f} of epoch {p['epoch']}, among the {self.tag}, is in no checkpoint: "
            "the next best value is saved"
            for p in gone
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the k best values and their epochs, best first, and the count of unranked values."""
        return {"best": [dict(peak) for peak in self._peaks], "unranked": self._unranked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters; a changed k applies from the next evaluation."""
        self._peaks = [ranking.read_peak(peak) for peak in state["best"]]
        self._unranked = int(state["unranked"])
