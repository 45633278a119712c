"""Paired comparison: published tables, scipy, and simulation of what the intervals promise."""

import random

import pytest
from scipy.stats import binomtest

from peakpoint import CheckpointError
from peakpoint.deployment.selection.paired import compare, mcnemar, newcombe, right


@pytest.mark.parametrize(
    ("table", "published"),
    [
        # Newcombe 1998, Stat. Med. 17:2635, method 10: first less second.
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        # Fagerland, Lydersen & Laake 2014, Stat. Med. 33:2850: airway hyper-responsiveness.
        ((1, 1, 7, 12), (-0.507, -0.026)),
        # Altman, Machin, Bryant & Gardner 2000, Statistics with Confidence, p. 52.
        ((14, 5, 0, 22), (0.011, 0.226)),
    ],
)
def test_the_interval_is_the_published_one(table, published):
    low, high = newcombe(*table, 0.05)
    assert (-high, -low) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize(("first", "second"), [(1, 7), (0, 5), (0, 0), (4, 4), (250, 301), (0, 900)])
def test_p_is_that_of_the_binomial_test(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(expected, rel=1e-9)


def test_the_table_is_counted_image_by_image():
    first = [True, True, True, False, False, False, True]
    second = [True, False, True, True, False, True, True]
    found = compare(first, second)
    assert (found.both, found.first, found.second, found.neither) == (3, 1, 2, 1)
    assert found.difference == pytest.approx(1 / 7)
    assert found.interval == newcombe(3, 1, 2, 1, 0.05)
    back = compare(second, first)
    assert (back.difference, back.p) == (-found.difference, found.p)
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_the_same_network_twice_is_no_different():
    hits = [i % 3 > 0 for i in range(300)]
    found = compare(hits, hits)
    assert (found.difference, found.p) == (0, 1)
    assert found.interval[0] < 0 < found.interval[1]
    assert found.interval[1] < 0.01
    for all_alike in ([True] * 50, [False] * 50):
        low, high = compare(all_alike, all_alike).interval
        assert -0.2 < low <= 0 <= high < 0.2


def test_pairs_tell_apart_what_two_samples_would_not():
    first = [True] * 800 + [False] * 200
    second = [True] * 815 + [False] * 185
    found = compare(first, second)
    assert found.interval[0] > 0
    assert found.p < 0.001
    assert right(first).interval[1] > right(second).interval[0]  # their own intervals overlap


def test_the_intervals_cover_as_often_as_they_say():
    draw, n, times = random.Random(7), 120, 2000
    covered = alone = 0
    for _ in range(times):
        pairs = [_pair(draw, 0.60, 0.16, 0.06) for _ in range(n)]
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        low, high = compare(first, second).interval
        covered += low <= 0.06 - 0.16 <= high
        low, high = right(first).interval
        alone += low <= 0.76 <= high
    assert 0.935 < covered / times < 0.975
    assert 0.935 < alone / times < 0.97


def _pair(draw, both, first, second):
    at = draw.random()
    if at < both:
        return True, True
    return (at < both + first, both + first <= at < both + first + second)


@pytest.mark.parametrize(("first", "second"), [([], []), ([True], [True, False])])
def test_other_images_are_refused(first, second):
    with pytest.raises(CheckpointError, match="cannot be the same ones"):
        compare(first, second)
    with pytest.raises(CheckpointError, match="no image"):
        right([])
