"""A stopping rule that is valid however often the outcomes are looked at.

Stopping at the first of many one-look intervals that excludes zero finds an effect that is not there far more
often than alpha. The interval here covers the true difference at all times at once, with probability 1 -
alpha.
"""

import math
from dataclasses import dataclass
from typing import Literal

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.selection.intervals import UNKNOWN, Interval, Sample, check_alpha


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
        check_alpha(self.alpha)
        if self.planned < 1 or self.least < 2:
            raise CheckpointError("planned must be at least 1 user and least at least 2: give more.")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise CheckpointError(
                f"margin={self.margin!r} is out of range: it must be finite and at least 0."
            )


LEAST_OF_EACH = 10


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
    return Verdict("continue", f"{between}: too early to tell", interval, n)


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
    difference = b.mean - a.mean
    return difference - half, difference + half
