"""The intervals for one look are those of the books and of scipy."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.selection.intervals import Sample, compare, incomplete_beta, t_quantile, wilson

numbers = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2, max_size=50)
ones = st.lists(st.integers(0, 1), min_size=1, max_size=300)
alphas = st.sampled_from([0.001, 0.01, 0.05, 0.2])


def yes(successes, n):
    return [1] * successes + [0] * (n - successes)


@pytest.mark.filterwarnings("ignore:Precision loss")  # of scipy's, where values are equal
@given(numbers, numbers, alphas)
@settings(max_examples=200, deadline=None)
def test_means_have_scipys_welch_interval(champion, challenger, alpha):
    found = compare(champion, challenger, binary=False, alpha=alpha)
    assert found.difference == pytest.approx(stats.tmean(challenger) - stats.tmean(champion), abs=1e-9)
    if len(set(champion)) + len(set(challenger)) > 2:
        test = stats.ttest_ind(challenger, champion, equal_var=False)
        reference = test.confidence_interval(1 - alpha)
        assert found.interval == pytest.approx((reference.low, reference.high), rel=1e-7, abs=1e-7)


@given(ones, ones, alphas)
@settings(max_examples=200, deadline=None)
def test_proportions_have_newcombes_interval_from_scipys_wilson(champion, challenger, alpha):
    found = compare(champion, challenger, binary=True, alpha=alpha)
    (p, p_low, p_high), (q, q_low, q_high) = (
        (sum(some) / len(some), *stats.binomtest(sum(some), len(some)).proportion_ci(1 - alpha, "wilson"))
        for some in (champion, challenger)
    )
    low = q - p - math.sqrt((q - q_low) ** 2 + (p_high - p) ** 2)
    high = q - p + math.sqrt((q_high - q) ** 2 + (p - p_low) ** 2)
    assert found.interval == pytest.approx((low, high), abs=1e-9)
    assert wilson(found.champion, alpha) == pytest.approx((p_low, p_high), abs=1e-9)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    # Table II of Newcombe 1998, method 10, 95 %: 56/70 less 48/80, 9/10 less 3/10, 10/10 less 0/10.
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_proportions_have_the_intervals_that_newcombe_printed(one, other, low, high):
    found = compare(yes(*other), yes(*one), binary=True, alpha=0.05)
    assert found.interval == pytest.approx((low, high), abs=6e-5)


@given(st.floats(0.5, 0.9999995), st.floats(1, 1e6))
@settings(max_examples=300, deadline=None)
def test_the_quantile_of_t_is_scipys(p, dof):
    assert t_quantile(p, dof) == pytest.approx(stats.t.ppf(p, dof), rel=1e-7, abs=1e-7)


@given(st.floats(0, 1), st.floats(0.5, 1e5), st.floats(0.5, 50))
@settings(max_examples=300, deadline=None)
def test_the_incomplete_beta_is_scipys(x, a, b):
    assert incomplete_beta(x, a, b) == pytest.approx(special.betainc(a, b, x), rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    ("champion", "challenger", "binary"),
    [([], [1.0, 2.0], False), ([1.0], [1.0, 2.0], False), ([0.1] * 6, [0.7] * 6, False), ([], [1], True)],
)
def test_nothing_is_claimed_of_too_little(champion, challenger, binary):
    found = compare(champion, challenger, binary=binary, alpha=0.05)
    assert found.interval == (-math.inf, math.inf)


def test_bad_input_is_one_clear_line():
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        Sample.of([1.0, math.nan])
    with pytest.raises(CheckpointError, match="neither 0 nor 1"):
        compare([0, 1], [0, 0.5], binary=True, alpha=0.05)
    with pytest.raises(CheckpointError, match="alpha=1"):
        compare([0, 1], [0, 1], binary=True, alpha=1)
