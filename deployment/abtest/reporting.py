"""The report of an experiment: users by arm, the ratio checks, and a verdict for each challenger."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from mpmath import mp

from peakpoint.base.text import readable
from peakpoint.checkpointing.storage.aliases import CHAMPION
from peakpoint.deployment.abtest.comparison import Comparison, Rule, Verdict, compare, decide
from peakpoint.deployment.abtest.exposure import Study
from peakpoint.deployment.abtest.router import shares

THRESHOLD = 0.001
LEAST_EXPECTED = 5
"""Expected users of an arm, from which on the chi-square approximation holds (Cochran 1954)."""


@dataclass(frozen=True)
class RatioCheck:
    """Pearson's chi-square test of the users by arm; `ok` is None while they are too few for it."""

    chi_square: float
    p_value: float
    ok: bool | None
    sentence: str


def sample_ratio(observed: Mapping[str, int], weights: Mapping[str, float]) -> RatioCheck:
    """Test that users arrived in the proportions they were routed in; otherwise no comparison of them holds.

    A mismatch is a p-value below 0.001, the usual one of this test: it is repeated often and meant for gross
    errors. Fabijan et al., "Diagnosing sample ratio mismatch in online controlled experiments", KDD 2019.
    """
    parts = shares(weights)
    total = sum(observed.values())
    strange = sorted(alias for alias, count in observed.items() if count and not parts.get(alias))
    if strange:
        return RatioCheck(math.inf, 0.0, False, _mismatch(f"{', '.join(strange)} has users and no weight"))
    expected = {alias: total * part for alias, part in parts.items() if part > 0}
    chi_square = math.fsum((observed.get(a, 0) - e) ** 2 / e for a, e in expected.items() if e)
    degrees = len(expected) - 1
    p_value = float(mp.gammainc(degrees / 2, chi_square / 2, regularized=True)) if degrees else 1.0
    ok: bool | None = True
    sentence = f"The users by arm fit the weights (p = {p_value:.2g})."
    if min(expected.values()) < LEAST_EXPECTED:
        ok, sentence = None, f"Too few users for the test: an arm expects fewer than {LEAST_EXPECTED}."
    elif p_value < THRESHOLD:
        ok, sentence = False, _mismatch(f"p = {p_value:.2g}, below {THRESHOLD}")
    return RatioCheck(chi_square, p_value, ok, sentence)


def _mismatch(found: str) -> str:
    return (
        f"Sample-ratio mismatch ({found}): do not read the outcomes. Look for an arm that fails, is slow or "
        "loses log lines, and for users sent past the router; then begin again under another experiment name."
    )


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
        """Return it as strict JSON types; what is not finite is the word `nan`, `inf` or `-inf`."""
        found: dict[str, Any] = readable(asdict(self))
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
    own = replace(rule, alpha=rule.alpha / max(1, len(challengers)))
    findings = {}
    for alias in challengers:
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
