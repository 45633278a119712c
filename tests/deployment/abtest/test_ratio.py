"""Users who did not arrive in their proportions are noticed, and those who did are not accused."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from peakpoint.deployment.abtest.ratio import sample_ratio

HALF = {"champion": 1, "challenger_1": 1}


@given(st.lists(st.integers(5, 10_000), min_size=2, max_size=4), st.data())
@settings(max_examples=100, deadline=None)
def test_the_check_is_scipys(counts, data):
    aliases = [f"challenger_{i}" for i in range(len(counts))]
    some = st.floats(0.05, 1)
    weights = {alias: data.draw(some) for alias in aliases}
    expected = [sum(counts) * w / math.fsum(weights.values()) for w in weights.values()]
    reference = chisquare(counts, expected)
    found = sample_ratio(dict(zip(aliases, counts, strict=True)), weights)
    assert found.chi_square == pytest.approx(reference.statistic, rel=1e-9)
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-250)


# Fabijan et al. 2019 give 821 588 against 815 482 as a split that is not half and half.
@pytest.mark.parametrize(
    ("counts", "ok"),
    [
        ((821_588, 815_482), False),
        ((5000, 5100), True),
        ((5000, 5400), False),
        ((4, 4), None),
        ((0, 0), None),
    ],
)
def test_a_mismatch_is_distinguished_from_chance(counts, ok):
    found = sample_ratio(dict(zip(HALF, counts, strict=True)), HALF)
    assert found.ok is ok
    assert ("do not read the outcomes" in found.sentence) is (ok is False)


def test_an_arm_that_should_have_nobody_is_a_mismatch():
    for weights in ({"champion": 1}, {"champion": 1, "challenger_1": 0}):
        found = sample_ratio({"champion": 100, "challenger_1": 1}, weights)
        assert found.ok is False
        assert "challenger_1 has users and no weight" in found.sentence


def test_one_arm_is_as_it_should_be():
    assert sample_ratio({"champion": 100}, {"champion": 3}).ok is True
