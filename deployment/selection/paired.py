"""Two networks on the same images: how much more often the second is right, and how sure that is.

The images are the same, so what counts is where exactly one of the two is right: two networks that err on
the same images are told apart by far fewer of them than two samples of their own would need.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.selection.intervals import Interval, Sample, check_alpha, wilson

ALPHA = 0.05


@dataclass(frozen=True)
class Right:
    """How many images a network is right on, of how many, and the score interval of the proportion."""

    right: int
    count: int
    interval: Interval

    @property
    def accuracy(self) -> float:
        """The proportion."""
        return self.right / self.count


@dataclass(frozen=True)
class Paired:
    """Second less first: on how many images both, only the first, only the second and neither are right.

    `p` is of McNemar's exact test, two-sided: how likely so uneven a split of the images that exactly one of
    them is right on is, if both are right equally often.
    """

    both: int
    first: int
    second: int
    neither: int
    difference: float
    interval: Interval
    p: float


def right(hits: Sequence[bool], alpha: float = ALPHA) -> Right:
    """The accuracy of a network; `hits` says on which images it is right. Raises CheckpointError for none."""
    check_alpha(alpha)
    if not hits:
        raise CheckpointError("There is no image to be right on.")
    return Right(sum(hits), len(hits), wilson(_sample(sum(hits), len(hits)), alpha))


def compare(first: Sequence[bool], second: Sequence[bool], alpha: float = ALPHA) -> Paired:
    """Compare two networks; the interval covers the true difference with probability 1 - alpha, at one look.

    Raises CheckpointError when they were not tried on the same images.
    """
    check_alpha(alpha)
    if not first or len(first) != len(second):
        raise CheckpointError(f"{len(first)} and {len(second)} images cannot be the same ones.")
    counts = {(x, y): 0 for x in (True, False) for y in (True, False)}
    for pair in zip(map(bool, first), map(bool, second), strict=True):
        counts[pair] += 1
    both, only_first, only_second, neither = counts.values()
    return Paired(
        both,
        only_first,
        only_second,
        neither,
        (only_second - only_first) / len(first),
        newcombe(both, only_first, only_second, neither, alpha),
        mcnemar(only_first, only_second),
    )


def newcombe(both: int, first: int, second: int, neither: int, alpha: float) -> Interval:
    """The interval of second less first: method 10 of Newcombe 1998, Stat. Med. 17:2635.

    The score intervals of the two proportions, put together as their correlation allows.
    """
    n = both + first + second + neither
    p, q = (both + first) / n, (both + second) / n
    (p_low, p_high), (q_low, q_high) = (wilson(_sample(k, n), alpha) for k in (both + first, both + second))
    phi = _correlation(both, first, second, neither)

    def spread(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    return (q - p) - spread(q - q_low, p_high - p), (q - p) + spread(q_high - q, p - p_low)


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    """Of the two, with half the images taken off a positive one, as method 10 has it; 0 where one is none."""
    n = both + first + second + neither
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not product:
        return 0.0
    excess = both * neither - first * second
    return (max(excess - n / 2, 0.0) if excess > 0 else excess) / math.sqrt(product)


def mcnemar(first: int, second: int) -> float:
    """The exact two-sided p: the binomial test of `second` among those that exactly one is right on."""
    n = first + second
    ways, term = 0, 1
    for k in range(min(first, second) + 1):
        ways += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * ways / 2**n)


def _sample(hits: int, n: int) -> Sample:
    return Sample(n, hits / n, math.nan)  # the score interval asks for no variance
