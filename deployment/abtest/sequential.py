"""When to stop: a decision that is valid however often one looks.

An interval for one look is wrong for many: who stops at the first that leaves out zero finds an effect that
is not there far more often than alpha. The interval here holds at all times at once, with probability 1 -
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

    Promote when the whole interval lies above 0, keep the champion when it lies below `worth`, else continue.
    `alpha` is the probability that the interval ever leaves out the true difference. `planned` is the number
    of users per arm at which it is tightest: a guess costs width, not validity. No decision falls before each
    arm has `least` outcomes, and of binary ones `LEAST_OF_EACH` of either kind, as the interval rests on
    means that are nearly normal. `worth` is the difference below which a challenger is not worth a change;
    above 0 it lets an experiment without an effect end.
    """

    alpha: float = 0.05
    planned: int = 1000
    least: int = 100
    worth: float = 0.0

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        if self.planned < 1 or self.least < 2:
            raise CheckpointError("planned must be at least 1 user and least at least 2: give more.")
        if not (math.isfinite(self.worth) and self.worth >= 0):
            raise CheckpointError(f"worth={self.worth!r} is out of range: it must be finite, and 0 or more.")


LEAST_OF_EACH = 10


@dataclass(frozen=True)
class Verdict:
    """What to do, why, the interval of challenger less champion that says so, and the outcomes behind it."""

    decision: Literal["promote", "keep", "continue"]
    reason: str
    interval: Interval
    n: int


def decide(champion: Sample, challenger: Sample, rule: Rule, *, binary: bool) -> Verdict:
    """Apply the rule to the outcomes so far, one a user; may be asked after each."""
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
    if high < rule.worth:
        what = (
            "the challenger is worse"
            if high < 0
            else f"not better by {rule.worth:g}, which would be worth it"
        )
        return Verdict("keep", f"{between}: {what}", interval, n)
    return Verdict("continue", f"{between}: too early to tell", interval, n)


def sequence(champion: Sample, challenger: Sample, rule: Rule) -> Interval:
    """The interval at this moment of a confidence sequence for the difference of means.

    Robbins' normal mixture (1970), two-sided, as in Howard et al. 2021 (doi 10.1214/20-AOS1991); asymptotic,
    as the variances are estimated (Waudby-Smith et al. 2024, arXiv 2103.06476). In units of the standard
    deviation the difference times m = 1 / (1/n + 1/n') is a Brownian motion in the time m, with a drift of
    the true difference, as long as outcomes do not steer who is routed where.
    """
    a, b = champion, challenger
    variance = a.variance / a.n + b.variance / b.n
    if not variance > 0:  # nothing varies yet
        return UNKNOWN
    m = 1 / (1 / a.n + 1 / b.n)
    log = 2 * math.log(1 / rule.alpha)
    rho = (rule.planned / 2) / (
        log + math.log1p(log)
    )  # tightest at m = planned / 2: Howard et al., section 3.5
    half = math.sqrt(variance * (1 + rho / m) * (math.log1p(m / rho) + log))
    difference = b.mean - a.mean
    return difference - half, difference + half
