"""Confidence intervals of proportions, means and their differences, each for one planned look.

For looks at any time, see `abtest.sequential`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import bdtr, ndtri, stdtrit

from peakpoint.base.errors import CheckpointError

Interval = tuple[float, float]
UNKNOWN: Interval = (-math.inf, math.inf)
ALPHA = 0.05


def check_alpha(alpha: float) -> None:
    """Raise CheckpointError unless alpha is a probability of error."""
    if not 0 < alpha < 1:
        raise CheckpointError(f"alpha={alpha!r} is out of range: it must lie between 0 and 1, such as 0.05.")


def wilson(proportion: float, n: int, alpha: float) -> Interval:
    """Return the score interval of a proportion of `n`: Wilson 1927."""
    z, p = float(ndtri(1 - alpha / 2)), proportion
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


@dataclass(frozen=True)
class Sample:
    """The outcomes of an arm, one a user: their number, mean and variance (over n - 1)."""

    n: int
    mean: float
    variance: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Sample":
        """Return the sample of these outcomes. Raises CheckpointError for one that is NaN or infinite."""
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
    """Compare two arms; the interval covers the true difference with probability 1 - alpha.

    Binary outcomes are 0 and 1 (Newcombe's hybrid score interval), others any numbers (Welch).
    """
    check_alpha(alpha)
    if binary and not {*champion, *challenger} <= {0, 1}:
        raise CheckpointError("An outcome is neither 0 nor 1: compare numbers with binary=False.")
    a, b = Sample.of(champion), Sample.of(challenger)
    interval = newcombe(a, b, alpha) if binary else welch(a, b, alpha)
    return Comparison(a, b, b.mean - a.mean, interval, "newcombe" if binary else "welch")


def newcombe(champion: Sample, challenger: Sample, alpha: float) -> Interval:
    """Return the interval of a difference of proportions: method 10 of Newcombe 1998, Stat. Med. 17:873."""
    if not champion.n or not challenger.n:
        return UNKNOWN
    return _hybrid(champion.mean, champion.n, challenger.mean, challenger.n, 0.0, alpha)


def _hybrid(p: float, n: int, q: float, m: int, correlation: float, alpha: float) -> Interval:
    """Return the interval of q less p from their score intervals, put together as they are correlated."""
    (p_low, p_high), (q_low, q_high) = wilson(p, n, alpha), wilson(q, m, alpha)

    def spread(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))

    return (q - p) - spread(q - q_low, p_high - p), (q - p) + spread(q_high - q, p - p_low)


def welch(champion: Sample, challenger: Sample, alpha: float) -> Interval:
    """Return the interval of a difference of means with unequal variances: Welch 1947."""
    if champion.n < 2 or challenger.n < 2:
        return UNKNOWN
    a, b = champion.variance / champion.n, challenger.variance / challenger.n
    if a + b == 0:  # nothing varies, so nothing says how far off the means are
        return UNKNOWN
    dof = (a + b) ** 2 / (a * a / (champion.n - 1) + b * b / (challenger.n - 1))
    half = float(stdtrit(dof, 1 - alpha / 2)) * math.sqrt(a + b)
    difference = challenger.mean - champion.mean
    return difference - half, difference + half


@dataclass(frozen=True)
class Accuracy:
    """The number of images that a network classifies right, of `count`, and the proportion's interval."""

    right: int
    count: int
    interval: Interval

    @classmethod
    def of(cls, hits: Sequence[bool], alpha: float = ALPHA) -> "Accuracy":
        """Return the accuracy of a network from its hits by image. Raises CheckpointError for none."""
        check_alpha(alpha)
        if not hits:
            raise CheckpointError("There is no image to measure the accuracy on.")
        return cls(sum(hits), len(hits), wilson(sum(hits) / len(hits), len(hits), alpha))

    @property
    def value(self) -> float:
        """The proportion."""
        return self.right / self.count


@dataclass(frozen=True)
class Paired:
    """Second less first: the images on which both, only the first, only the second, neither are right.

    `p` is that of McNemar's exact two-sided test, whose null hypothesis is that both are right equally often.
    """

    both: int
    first: int
    second: int
    neither: int
    difference: float
    interval: Interval
    p: float


def compare_pairs(first: Sequence[bool], second: Sequence[bool], alpha: float = ALPHA) -> Paired:
    """Compare two networks by their hits on the same images; see `compare` for the interval.

    Only images on which exactly one is right count, so that networks with errors in common need far fewer
    images than two independent samples. Raises CheckpointError unless the images are as many.
    """
    check_alpha(alpha)
    if not first or len(first) != len(second):
        raise CheckpointError(f"{len(first)} and {len(second)} images cannot be the same ones.")
    counts = Counter(zip(map(bool, first), map(bool, second), strict=True))
    both, neither = counts[True, True], counts[False, False]
    only_first, only_second = counts[True, False], counts[False, True]
    return Paired(
        both,
        only_first,
        only_second,
        neither,
        (only_second - only_first) / len(first),
        newcombe_paired(both, only_first, only_second, neither, alpha),
        mcnemar(only_first, only_second),
    )


def newcombe_paired(both: int, first: int, second: int, neither: int, alpha: float) -> Interval:
    """Return the interval of second less first: method 10 of Newcombe 1998, Stat. Med. 17:2635."""
    n = both + first + second + neither
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    excess = both * neither - first * second
    # Method 10 takes half the images off a positive correlation, and sets it to 0 where it is undefined.
    corrected = max(excess - n / 2, 0.0) if excess > 0 else excess
    correlation = corrected / math.sqrt(product) if product else 0.0
    return _hybrid((both + first) / n, n, (both + second) / n, n, correlation, alpha)


def mcnemar(first: int, second: int) -> float:
    """Return the exact two-sided p: the binomial test of `second` among the images with one right answer."""
    return min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5)))
