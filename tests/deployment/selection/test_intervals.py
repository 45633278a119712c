"""The intervals are those of the published tables and of scipy, with the coverage that they promise."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.selection.intervals import (
    Accuracy,
    compare_pairs,
    hybrid,
    mcnemar,
    newcombe_paired,
    wilson,
)

ones = st.lists(st.integers(0, 1), min_size=1, max_size=300)
alphas = st.sampled_from([0.001, 0.01, 0.05, 0.2])


@given(ones, alphas)
@settings(max_examples=200, deadline=None)
def test_a_proportion_has_scipys_wilson_interval(outcomes, alpha):
    reference = stats.binomtest(sum(outcomes), len(outcomes)).proportion_ci(1 - alpha, "wilson")
    found = wilson(sum(outcomes) / len(outcomes), len(outcomes), alpha)
    assert found == pytest.approx((reference.low, reference.high), abs=1e-9)


@pytest.mark.parametrize(("n", "p", "m", "q"), [(40, 0.5, 40, 0.6), (60, 0.9, 30, 0.8), (50, 0.2, 90, 0.2)])
def test_a_difference_of_proportions_is_covered_as_promised_by_scipys_binomial_distributions(n, p, m, q):
    first, second = stats.binom.pmf(range(n + 1), n, p), stats.binom.pmf(range(m + 1), m, q)
    covered = 0.0
    for (i, chance), (j, other) in product(enumerate(first), enumerate(second)):
        low, high = hybrid(i / n, n, j / m, m, 0.0, 0.05)
        covered += chance * other * (low <= q - p <= high)
    assert covered == pytest.approx(0.95, abs=0.015)


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
def test_a_paired_difference_has_the_published_interval(table, published):
    low, high = newcombe_paired(*table)
    assert (-high, -low) == pytest.approx(published, abs=6e-4)


@pytest.mark.parametrize(("first", "second"), [(1, 7), (0, 5), (0, 0), (4, 4), (250, 301), (0, 900)])
def test_p_is_that_of_the_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(expected, rel=1e-9)


def test_pairs_are_counted_image_by_image():
    first = [True, True, True, False, False, False, True]
    second = [True, False, True, True, False, True, True]
    found = compare_pairs(first, second)
    assert (found.both, found.first, found.second, found.neither) == (3, 1, 2, 1)
    assert found.difference == pytest.approx(1 / 7)
    assert found.interval == newcombe_paired(3, 1, 2, 1)
    back = compare_pairs(second, first)
    assert (back.difference, back.p) == (-found.difference, found.p)
    assert back.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_the_same_network_twice_is_no_different():
    hits = [i % 3 > 0 for i in range(300)]
    found = compare_pairs(hits, hits)
    assert (found.difference, found.p) == (0, 1)
    assert found.interval[0] < 0 < found.interval[1]
    assert found.interval[1] < 0.01
    for all_alike in ([True] * 50, [False] * 50):
        low, high = compare_pairs(all_alike, all_alike).interval
        assert -0.2 < low <= 0 <= high < 0.2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: compare_pairs([], []), "cannot be the same ones"),
        (lambda: compare_pairs([True], [True, False]), "cannot be the same ones"),
        (lambda: Accuracy.of([]), "no image"),
    ],
)
def test_bad_input_is_one_clear_line(call, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        call()
