"""The difference between two arms, and a stopping rule that is valid however often it is applied.

Stopping at the first of many one-look intervals that excludes zero finds an effect that is not there far more
often than alpha. The interval of the stopping rule covers the true difference at all times at once, with
probability 1 - alpha.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mpmath import mp

from peakpoint.base import given
from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.abtest.exposure import LARGEST, is_outcome
from peakpoint.deployment.selection.intervals import Interval, hybrid, quantile

UNKNOWN: Interval = (-math.inf, math.inf)
LEAST_OF_EACH = 10
"""Successes and failures of an arm, from which on the mean of binary outcomes is nearly normal."""
LARGE = 1e8
"""Degrees of freedom from which on Student's t is the normal distribution, to 2e-7 of its quantiles."""


@dataclass(frozen=True)
class Sample:
    """The outcomes of an arm, one a user: their number, mean and variance (over n - 1)."""

    n: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Return the sample of these outcomes. Raises CheckpointError for one that cannot be compared."""
        if not all(map(is_outcome, values)):
            raise CheckpointError(
                f"An outcome is NaN, infinite or beyond {LARGEST:g}: leave it out, or log what it stands for."
            )
        n = len(values)
        mean = statistics.fmean(values) if n else math.nan
        # In exact arithmetic, so that equal values have a variance of exactly 0.
        return cls(n, mean, statistics.variance(values) if n > 1 else math.nan)


@dataclass(frozen=True)
class Comparison:
    """Challenger less champion: NaN and an infinite interval while an arm has too few outcomes."""

    champion: Sample
    challenger: Sample
    difference: float
    interval: Interval
    method: str


def compare(
    champion: Sequence[float], challenger: Sequence[float], *, binary: bool, alpha: float
) -> Comparison:
    """Compare two arms; the interval, for one look, covers the true difference with probability 1 - alpha.

    Binary outcomes are 0 and 1 (method 10 of Newcombe 1998, Stat. Med. 17:873), others any numbers (Welch).
    """
    _check_alpha(alpha)
    if binary and not {*champion, *challenger} <= {0, 1}:
        raise CheckpointError("An outcome is neither 0 nor 1: compare numbers with binary=False.")
    a, b = Sample.of(champion), Sample.of(challenger)
    interval = UNKNOWN
    if binary and a.n and b.n:
        interval = hybrid(a.mean, a.n, b.mean, b.n, 0.0, alpha)
    elif not binary and a.n > 1 and b.n > 1:
        interval = welch(a, b, alpha)
    return Comparison(a, b, b.mean - a.mean, interval, "newcombe" if binary else "welch")


def _check_alpha(alpha: float) -> None:
    _check_range("alpha", alpha, 1e-12, 0.5)


def _check_range(name: str, value: object, low: float, high: float) -> None:
    if not given.of_kind(value, float) or not low <= value <= high:  # type: ignore[operator]
        raise CheckpointError(
            f"{name}={value!r} is out of range: it must be a number from {low:g} to {high:g}."
        )


def welch(champion: Sample, challenger: Sample, alpha: float) -> Interval:
    """Return the interval of a difference of means with unequal variances: Welch 1947."""
    a, b = champion.variance / champion.n, challenger.variance / challenger.n
    if a + b == 0:  # nothing varies, so nothing says how far off the means are
        return UNKNOWN
    part = a / (a + b)  # squares of the variances themselves may be beyond a float
    dof = 1 / (part**2 / (champion.n - 1) + (1 - part) ** 2 / (challenger.n - 1))
    difference, half = challenger.mean - champion.mean, _student(dof, alpha) * math.sqrt(a + b)
    return difference - half, difference + half


def _student(dof: float, alpha: float) -> float:
    """Return the value that Student's t exceeds in size with probability alpha."""
    if dof > LARGE:
        return quantile(alpha)

    def excess(t: float) -> float:  # the logarithm, which is nearly straight in both tails
        return mp.log(mp.betainc(dof / 2, 0.5, 0, dof / (dof + t * t), regularized=True) / alpha)

    return float(mp.findroot(excess, quantile(alpha)))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The stopping rule, fixed before the first user comes.

    Promote when the whole interval lies above 0, keep the champion when it lies below `margin`, or continue.
    `alpha` is the probability that the interval ever excludes the true difference. `planned` is the number of
    users per arm at which it is tightest: a wrong guess costs width, not validity. No decision is made before
    each arm has `least` outcomes, and `LEAST_OF_EACH` successes and failures if they are binary, because the
    interval assumes nearly normal means. `margin` is the smallest improvement that justifies a change; above
    0 it lets an experiment without an effect end.
    """

    alpha: float = 0.05
    planned: int = 1000
    least: int = 100
    margin: float = 0.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        given.whole("planned", self.planned, least=1)
        _check_range("planned", self.planned, 1, 1e15)
        given.whole("least", self.least, least=2)
        _check_range("margin", self.margin, 0, LARGEST)


@dataclass(frozen=True)
class Verdict:
    """A decision, its reason, the interval of challenger less champion, and the number of outcomes."""

    decision: Literal["promote", "keep", "continue"]
    reason: str
    interval: Interval
    n: int


def decide(champion: Sample, challenger: Sample, rule: Rule, *, binary: bool) -> Verdict:
    """Apply the rule to the outcomes so far, one a user; it may be applied after each."""
    n = champion.n + challenger.n
    fewest = min(champion.n, challenger.n)
    if fewest < rule.least:
        return Verdict("continue", f"an arm has {fewest} outcomes of at least {rule.least}", UNKNOWN, n)
    if binary:
        rarest = round(min(min(s.mean, 1 - s.mean) * s.n for s in (champion, challenger)))
        if rarest < LEAST_OF_EACH:
            reason = f"an arm has {rarest} successes or failures of at least {LEAST_OF_EACH}"
            return Verdict("continue", reason, UNKNOWN, n)
    interval = sequence(champion, challenger, rule)
    low, high = interval
    between = f"challenger less champion lies between {low:.4g} and {high:.4g}"
    if low > 0:
        return Verdict("promote", f"{between}: the challenger is better", interval, n)
    if high < rule.margin:
        what = "worse" if high < 0 else f"not better by {rule.margin:g}"
        return Verdict("keep", f"{between}: the challenger is {what}", interval, n)
    return Verdict("continue", f"{between}: no decision yet", interval, n)


def sequence(champion: Sample, challenger: Sample, rule: Rule) -> Interval:
    """Return the present interval of a confidence sequence for the difference of means.

    Robbins' normal mixture (1970), two-sided, as in Howard et al. 2021 (doi 10.1214/20-AOS1991); asymptotic,
    as the variances are estimated (Waudby-Smith et al. 2024, arXiv 2103.06476). In units of the standard
    deviation the difference times m = 1 / (1/n + 1/n') is a Brownian motion in the time m, whose drift is the
    true difference as long as the routing does not depend on outcomes.
    """
    a, b = champion, challenger
    variance = a.variance / a.n + b.variance / b.n
    if not variance > 0:  # nothing varies yet
        return UNKNOWN
    m = 1 / (1 / a.n + 1 / b.n)
    log = 2 * math.log(1 / rule.alpha)
    rho = rule.planned / 2 / (log + math.log1p(log))  # tightest at m = planned / 2: Howard et al., 3.5
    half = math.sqrt(variance * (1 + rho / m) * (math.log1p(m / rho) + log))
    return b.mean - a.mean - half, b.mean - a.mean + half
