"""The report of an experiment: users by arm, the ratio checks, and a verdict for each challenger."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from peakpoint.checkpointing.storage.aliases import CHAMPION
from peakpoint.deployment.abtest.exposure import Study
from peakpoint.deployment.abtest.ratio import RatioCheck, sample_ratio
from peakpoint.deployment.abtest.router import shares
from peakpoint.deployment.abtest.sequential import Rule, Verdict, decide
from peakpoint.deployment.selection.intervals import Comparison, compare


@dataclass(frozen=True)
class Finding:
    """A challenger against the champion."""

    comparison: Comparison
    verdict: Verdict


@dataclass(frozen=True)
class Report:
    """The report of one design of an experiment.

    `users` and `outcomes` are counts by alias. `set_aside` counts users first exposed under another design,
    `crossed` users who saw several arms; `strays` and `unreadable` are those of `Study`. `ratio` tests the
    users by arm, `outcome_ratio` only those with an outcome, which shows an arm that loses outcomes.
    """

    users: dict[str, int]
    outcomes: dict[str, int]
    set_aside: int
    crossed: int
    strays: int
    unreadable: int
    ratio: RatioCheck
    outcome_ratio: RatioCheck
    findings: dict[str, Finding]

    def plain(self) -> dict[str, Any]:
        """Return it as strict JSON types, with None for values that are not finite."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


def report(found: Study, design: str, weights: Mapping[str, float], rule: Rule, *, binary: bool) -> Report:
    """Compare each challenger that has a weight with the champion, under one design.

    Several challengers share the rule's alpha evenly (Bonferroni). While a ratio check fails, no verdict
    decides.
    """
    parts = {alias: share for alias, share in shares(weights).items() if share > 0}
    subjects = found.within(design)
    values: dict[str, list[float]] = {alias: [] for alias in parts}
    for subject in subjects:
        if subject.outcome is not None:
            values.setdefault(subject.alias, []).append(subject.outcome)
    users = Counter(subject.alias for subject in subjects)
    outcomes = {alias: len(some) for alias, some in values.items()}
    ratio, outcome_ratio = sample_ratio(users, parts), sample_ratio(outcomes, parts)
    broken = next((check.sentence for check in (ratio, outcome_ratio) if check.ok is False), None)

    challengers = [alias for alias in parts if alias != CHAMPION] if CHAMPION in parts else []
    findings = {}
    for alias in challengers:
        own = replace(rule, alpha=rule.alpha / len(challengers))
        pair = compare(values[CHAMPION], values[alias], binary=binary, alpha=own.alpha)
        verdict = decide(pair.champion, pair.challenger, own, binary=binary)
        if broken:
            verdict = replace(verdict, decision="continue", reason=broken)
        findings[alias] = Finding(pair, verdict)
    return Report(
        users={alias: users[alias] for alias in values},
        outcomes=outcomes,
        set_aside=len(found.subjects) - len(subjects),
        crossed=found.crossed,
        strays=found.strays,
        unreadable=found.unreadable,
        ratio=ratio,
        outcome_ratio=outcome_ratio,
        findings=findings,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
