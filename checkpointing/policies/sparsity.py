"""Save the best checkpoint for each sparsity target while a network is pruned."""

from collections.abc import Iterable
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
from peakpoint.checkpointing.policy import Decision, Outlook, order, ranked
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.naming import safe_name

SLACK = 1e-6
"""Tolerance of a target as a fraction of weights: a mask has a whole number of zeros, just below or above."""


@register("policy", "sparsity")
@dataclass(kw_only=True)
class Sparsity(Ranked):
    """Milestones by target; each target has its own best and its own tag.

    `targets` are fractions of zeros; those of 0 or less are ignored, so that a dense run may name one.

    `rule` at_least counts evaluations at or above the target; window those within `tolerance` of it, and
    with `jump_over` also the first one after a jump from below the window to above it. `settled` is the
    number of evaluations in a row with an unchanged mask that are required; `keep` as in best.
    """

    metric: str
    mode: str
    min_delta: float
    targets: list[float]
    rule: str
    tolerance: float
    jump_over: bool
    settled: int
    keep: int | None

    def __post_init__(self) -> None:
        check_types("sparsity", self)
        check_metric("sparsity", self.metric, self.mode, self.min_delta)
        check(all(t < 1 for t in self.targets), "sparsity.targets", self.targets, "fractions below 1")
        check(self.rule in ("at_least", "window"), "sparsity.rule", self.rule, "at_least or window")
        check(0 <= self.tolerance < 1, "sparsity.tolerance", self.tolerance, "at least 0 and below 1")
        check(self.settled >= 0, "sparsity.settled", self.settled, "at least 0")
        check_count("sparsity.keep", self.keep)
        targets = sorted({round(t, 6) for t in self.targets if t > SLACK})
        self._targets = {tag(self.metric, target): target for target in targets}
        self.roles = {role: Role(role, self.metric, self.mode, self.min_delta) for role in self._targets}
        self._landed: dict[str, float] = {}  # sparsity after a jump over a window, until it is saved
        self._previous = 0.0
        self._mask_version: int | None = None
        self._unchanged = 0
        self._unranked = 0
        super().__post_init__()

    def at_most(self, run: Outlook) -> int:
        """Return the largest number of checkpoints kept at once."""
        reached = {round(t, 6) for t in self.targets if 0 < t <= run.sparsity + SLACK}
        return len(reached) * min(run.evaluations, self.keep or run.evaluations)

    def decide(self, event: Event) -> list[Decision]:
        """Return a save for each target that is met with a better value than before."""
        decisions: list[Decision] = []
        if not isinstance(event, EvalEnd):
            return decisions
        value = ranked(event.metrics, self.metric)
        self._unranked += value is None
        self._unchanged = self._unchanged + 1 if event.mask_version == self._mask_version else 0
        self._mask_version = event.mask_version
        for role, target in self._targets.items():
            met = self._meets(role, target, event.sparsity)
            if value is not None and met and self._unchanged >= self.settled:
                self._landed.pop(role, None)
                what = f"{self.metric} at sparsity {event.sparsity:.4f}:"
                decisions += self.improved(role, value, event.epoch, what)
        self._previous = event.sparsity
        return decisions

    def _meets(self, role: str, target: float, sparsity: float) -> bool:
        if self.rule == "at_least":
            return sparsity >= target - SLACK
        tolerance = self.tolerance + SLACK
        if abs(sparsity - target) <= tolerance:
            return True
        if not self.jump_over:
            return False
        # A jump that is not settled or ranked yet counts for as long as the sparsity stays.
        if self._previous < target - tolerance and sparsity > target + tolerance:
            self._landed[role] = sparsity
        elif role in self._landed and abs(sparsity - self._landed[role]) > tolerance:
            del self._landed[role]
        return role in self._landed

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its epoch by role, and what the rules need of earlier evaluations."""
        return {
            **super().state_dict(),
            "landed": dict(self._landed),
            "previous_sparsity": self._previous,
            "mask_version": self._mask_version,
            "unchanged": self._unchanged,
            "unranked": self._unranked,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters of the targets that are still configured; a new target has none."""
        super().load_state_dict(state)
        self._landed = {t: float(s) for t, s in state["landed"].items() if t in self.roles}
        self._previous = float(state["previous_sparsity"])
        version = state["mask_version"]
        self._mask_version = None if version is None else int(version)
        self._unchanged = int(state["unchanged"])
        self._unranked = int(state["unranked"])


def tag(metric: str, target: float) -> str:
    """Return the tag of the best checkpoint for a target, with 2 to 6 digits as the target needs."""
    target = round(target, 6)
    digits = next(d for d in range(2, 7) if round(target, d) == target)
    return safe_name(f"best_{metric}_at_sparsity_{target:.{digits}f}")


def peak(manifests: Iterable[Manifest], *, metric: str, mode: str, target: float) -> Manifest | None:
    """Return the best checkpoint at the target sparsity, of all for a target of 0; None without one."""
    wanted = tag(metric, target) if target else f"best_{metric}"
    found = [m for m in manifests if wanted in m.tags and ranked(m.metrics, metric) is not None]
    return max(found, key=lambda m: (order(m.metrics[metric], mode), -m.sequence), default=None)
