"""How much better a challenger is than the champion, with an interval for one look that was planned before.

For looks at any time, and for the decision, see `sequential`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from peakpoint.base.errors import CheckpointError

Interval = tuple[float, float]
UNKNOWN: Interval = (-math.inf, math.inf)


@dataclass(frozen=True)
class Sample:
    """The outcomes of an arm, one a user: how many, their mean, their variance (over n - 1)."""

    n: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """The sample of some outcomes. Raises CheckpointError for one that is NaN or infinite."""
        if not all(map(math.isfinite, values)):
            raise CheckpointError("An outcome is NaN or infinite: leave it out, or log what it stands for.")
        n = len(values)
        # From the first value on, so that equal values have a variance of exactly 0.
        mean = values[0] + math.fsum(value - values[0] for value in values) / n if n else math.nan
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else math.nan
        return cls(n, mean, variance)


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
    """Compare two arms; the interval covers the true difference with probability 1 - alpha, at one look.

    Binary outcomes are 0 and 1 (Newcombe's hybrid score interval), others any numbers (Welch).
    """
    check_alpha(alpha)
    if binary and not {*champion, *challenger} <= {0, 1}:
        raise CheckpointError("An outcome is neither 0 nor 1: compare numbers with binary=False.")
    a, b = Sample.of(champion), Sample.of(challenger)
    interval = newcombe(a, b, alpha) if binary else welch(a, b, alpha)
    return Comparison(a, b, b.mean - a.mean, interval, "newcombe" if binary else "welch")


def check_alpha(alpha: float) -> None:
    """Raise CheckpointError unless alpha is a probability of error."""
    if not 0 < alpha < 1:
        raise CheckpointError(f"alpha={alpha!r} is out of range: it must lie between 0 and 1, such as 0.05.")


def wilson(sample: Sample, alpha: float) -> Interval:
    """The score interval of a proportion: Wilson 1927."""
    z = NormalDist().inv_cdf(1 - alpha / 2)
    n, p = sample.n, sample.mean
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def newcombe(champion: Sample, challenger: Sample, alpha: float) -> Interval:
    """The interval of a difference of proportions: method 10 of Newcombe 1998, Stat. Med. 17:873."""
    if not champion.n or not challenger.n:
        return UNKNOWN
    p, q = champion.mean, challenger.mean
    (p_low, p_high), (q_low, q_high) = wilson(champion, alpha), wilson(challenger, alpha)
    return (q - p) - math.hypot(q - q_low, p_high - p), (q - p) + math.hypot(q_high - q, p - p_low)


def welch(champion: Sample, challenger: Sample, alpha: float) -> Interval:
    """The interval of a difference of means with unequal variances: Welch 1947."""
    if champion.n < 2 or challenger.n < 2:
        return UNKNOWN
    a, b = champion.variance / champion.n, challenger.variance / challenger.n
    if a + b == 0:  # nothing varies, so nothing says how far off the means are
        return UNKNOWN
    dof = (a + b) ** 2 / (a * a / (champion.n - 1) + b * b / (challenger.n - 1))
    half = t_quantile(1 - alpha / 2, dof) * math.sqrt(a + b)
    difference = challenger.mean - champion.mean
    return difference - half, difference + half


def t_quantile(p: float, dof: float) -> float:
    """The quantile of Student's t for 0.5 <= p < 1, by bisection over x = dof / (dof + t^2)."""
    tail, low, high = 2 * (1 - p), 0.0, 1.0
    for _ in range(200):
        x = (low + high) / 2
        if incomplete_beta(x, dof / 2, 0.5) < tail:
            low = x
        else:
            high = x
    return math.sqrt(dof * (1 - x) / x)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta I_x(a, b): the continued fraction of NIST DLMF 8.17.22, by Lentz."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # it converges fast below
        return 1 - incomplete_beta(1 - x, b, a)
    front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(front) * value / a


def _away_from_zero(x: float) -> float:
    return x if abs(x) > 1e-300 else 1e-300
