"""Confidence intervals of proportions and of their differences, each for one planned look.

For looks at any time, see `abtest.comparison`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from peakpoint.base.errors import CheckpointError

Interval = tuple[float, float]
ALPHA = 0.05


def quantile(alpha: float) -> float:
    """Return the value that a standard normal variable exceeds in size with probability alpha."""
    return -NormalDist().inv_cdf(alpha / 2)  # 1 - alpha / 2 may round to 1


def wilson(p: float, n: int, alpha: float) -> Interval:
    """Return the score interval of a proportion `p` of `n`: Wilson 1927."""
    z = quantile(alpha)
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def hybrid(p: float, n: int, q: float, m: int, correlation: float, alpha: float) -> Interval:
    """Return the interval of `q` of `m` less `p` of `n`, from their score intervals: Newcombe 1998."""
    (p_low, p_high), (q_low, q_high) = wilson(p, n, alpha), wilson(q, m, alpha)

    def spread(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * correlation * x * y + y * y))

    return (q - p) - spread(q - q_low, p_high - p), (q - p) + spread(q_high - q, p - p_low)


@dataclass(frozen=True)
class Accuracy:
    """The number of images that a network classifies right, of `count`, and the proportion's interval."""

    right: int
    count: int
    interval: Interval

    @classmethod
    def of(cls, hits: Sequence[bool]) -> "Accuracy":
        """Return the accuracy of a network from its hits by image. Raises CheckpointError for none."""
        if not hits:
            raise CheckpointError("There is no image to measure the accuracy on.")
        return cls(sum(hits), len(hits), wilson(sum(hits) / len(hits), len(hits), ALPHA))

    @property
    def value(self) -> float:
        """Return the proportion."""
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


def compare_pairs(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two networks by their hits on the same images.

    Only images on which exactly one is right count, so that networks with errors in common need far fewer
    images than two independent samples. Raises CheckpointError unless the images are as many.
    """
    if not first or len(first) != len(second):
        raise CheckpointError(f"{len(first)} and {len(second)} images cannot be the same ones.")
    counts = Counter(zip(map(bool, first), map(bool, second), strict=True))
    both, neither = counts[True, True], counts[False, False]
    one, other = counts[True, False], counts[False, True]
    interval = newcombe_paired(both, one, other, neither)
    return Paired(both, one, other, neither, (other - one) / len(first), interval, mcnemar(one, other))


def newcombe_paired(both: int, first: int, second: int, neither: int) -> Interval:
    """Return the interval of second less first: method 10 of Newcombe 1998, Stat. Med. 17:2635."""
    n = both + first + second + neither
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    excess = both * neither - first * second
    # Method 10 takes half the images off a positive correlation, and sets it to 0 where it is undefined.
    corrected = max(excess - n / 2, 0.0) if excess > 0 else excess
    correlation = corrected / math.sqrt(product) if product else 0.0
    return hybrid((both + first) / n, n, (both + second) / n, n, correlation, ALPHA)


def mcnemar(first: int, second: int) -> float:
    """Return the exact two-sided p: the binomial test of `second` among the images with one right answer."""
    n = first + second
    ways = total = 1
    for k in range(min(first, second)):
        ways = ways * (n - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / 2**n)
