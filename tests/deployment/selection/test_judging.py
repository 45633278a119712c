"""Rules against facts: margins as people write them, an order that does not depend on who asks, ties."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.selection import judging
from peakpoint.deployment.selection.rules import MARGINS, NUMBERS, Key, Requirement, Tie

thousandths = st.integers(-2000, 2000).map(lambda n: n / 1000)
values = st.floats(allow_nan=False, allow_infinity=False, width=32)
ACCURACY, SPARSITY = Key("accuracy", "max"), Key("sparsity", "max")


def meets(operator, value, bound, reference=None):
    rule = Requirement("m", operator, bound, None if reference is None else "champion")
    references = {} if reference is None else {"champion": {"m": reference}}
    return judging.failure(rule, {"m": value}, references) is None


@given(st.integers(-2000, 2000), st.integers(-2000, 2000))
def test_a_margin_of_a_thousandth_is_a_thousandth(value, reference):
    v, r, exact = value / 1000, reference / 1000, (value - reference) / 1000
    assert meets("min_delta", v, exact, r)
    assert meets("max_delta", v, exact, r)
    assert not meets("min_delta", v, (value - reference + 1) / 1000, r)
    assert not meets("max_delta", v, (value - reference - 1) / 1000, r)


@given(st.integers(0, 3000), st.integers(1, 2000))
def test_a_ratio_is_inclusive_and_never_off_by_rounding(percent, reference):
    value, bound, r = percent * reference / 1e5, percent / 100, reference / 1000
    value = float(f"{value:.5f}")
    assert meets("min_ratio", value, bound, r)
    assert meets("max_ratio", value, bound, r)
    assert not meets("min_ratio", value, bound + 0.01, r)
    assert bound == 0 or not meets("max_ratio", value, bound - 0.01, r)


def test_a_ratio_to_nothing_and_to_less():
    assert meets("min_ratio", 0.0, 2.0, 0.0)
    assert meets("max_ratio", 0.0, 0.5, 0.0)
    assert not meets("max_ratio", 0.1, 0.5, 0.0)
    rule = Requirement("m", "max_ratio", 1.0, "champion")
    assert "below 0, says nothing" in judging.failure(rule, {"m": -3.0}, {"champion": {"m": -2.0}})


@given(values, values)
def test_inclusive_and_strict_bounds_part_every_number(value, bound):
    assert meets("min", value, bound) != meets("below", value, bound)
    assert meets("max", value, bound) != meets("above", value, bound)
    assert meets("min", bound, bound)
    assert not meets("above", bound, bound)


@pytest.mark.parametrize("operator", [*NUMBERS, *MARGINS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_a_number_never_qualifies(operator, value):
    versus = "champion" if operator in MARGINS else None
    rule = Requirement("m", operator, 0.0, versus)
    facts = {} if value is None else {"m": value}
    reason = judging.failure(rule, facts, {"champion": {"m": 0.0}})
    assert reason == f"{rule}: m is {'not recorded' if value is None else value}"
    if versus:  # nor can anything be measured against it
        assert f"of the champion, m is {value or 'not recorded'}" in judging.failure(
            rule, {"m": 0.0}, {"champion": facts}
        ).replace("None", "not recorded")


def test_a_rule_against_nobody_is_passed_over():
    rule = Requirement("m", "min_delta", 0.0, "champion")
    assert judging.failure(rule, {}, {}) is None
    assert judging.failure(rule, {"m": 0.5}, {"champion": {"m": 0.75}}) == (
        "m min_delta 0 vs champion: it is 0.5, the champion 0.75"
    )


def test_a_sparsity_is_met_by_the_count_that_a_mask_can_reach():
    just_below = {"sparsity": 0.7 - 5e-7}
    assert judging.failure(Requirement("sparsity", "min", 0.7, None), just_below, {}) is None
    target = {"target": {"sparsity": 0.7}}
    assert judging.failure(Requirement("sparsity", "min_delta", 0, "target"), just_below, target) is None
    assert judging.failure(Requirement("sparsity", "min", 0.7, None), {"sparsity": 0.6999}, {})


def facts_of(one):
    return dict(zip(("accuracy", "sparsity", "bytes"), one[:3], strict=True))


fractions = st.integers(0, 60).map(lambda n: n / 60)
candidates = st.lists(
    st.tuples(fractions, fractions, st.integers(1, 3), st.integers()), min_size=1, unique_by=lambda c: c[3]
)


def ranked(found):
    return judging.by_rank(found, facts_of, (ACCURACY, Key("bytes", "min")), lambda one: (one[3],))


@given(candidates, st.randoms())
def test_the_order_of_asking_does_not_matter(found, chance: random.Random):
    tie = Tie("accuracy", 0.9, None, (SPARSITY,))
    other = found.copy()
    chance.shuffle(other)
    assert ranked(found) == ranked(other)
    assert judging.by_preference(ranked(found), facts_of, tie, 60) == judging.by_preference(
        ranked(other), facts_of, tie, 60
    )


@given(candidates)
def test_a_ranking_is_by_the_first_key_then_the_next_then_the_later(found):
    ranking = ranked(found)
    places = [(-a, b, -later) for a, _, b, later in ranking]
    assert places == sorted(places)
    assert sorted(ranking) == sorted(found)


@given(candidates, st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_a_tie_is_what_scipy_cannot_distinguish_from_the_best(found, confidence):
    ranking = ranked(found)
    best = ranking[0][0]
    low = binomtest(round(best * 60), 60).proportion_ci(confidence, method="wilson").low
    tied, others = judging.by_preference(
        ranking, facts_of, Tie("accuracy", confidence, None, (SPARSITY,)), 60
    )
    assert all(one[0] >= low - 1e-9 for one in tied)
    assert all(one[0] <= low + 1e-9 for one in others)
    assert others == [one for one in ranking if one in others]
    assert tied[0][1] == max(one[1] for one in tied)
    equal = [one for one in tied if one[1] == tied[0][1]]
    assert equal == [one for one in ranking if one in equal]


@given(candidates)
def test_more_confidence_ties_more_and_no_distance_only_what_is_equal(found):
    ranking = ranked(found)

    def tied(confidence=None, within=None):
        return judging.by_preference(ranking, facts_of, Tie("accuracy", confidence, within, (SPARSITY,)), 60)[
            0
        ]

    assert set(tied(0.5)) <= set(tied(0.9)) <= set(tied(0.999))
    assert {one[0] for one in tied(within=0.0)} == {ranking[0][0]}
    assert set(tied(within=1.0)) == set(found)


def test_what_has_no_value_for_the_preference_comes_last_but_stays():
    found = [(0.9, math.nan, 1, 2), (0.9, 0.1, 1, 1), (0.9, math.inf, 1, 0)]
    tied, others = judging.by_preference(found, facts_of, Tie("accuracy", None, 0.1, (SPARSITY,)), None)
    assert tied == [found[1], found[0], found[2]]
    assert not others


def test_lower_is_better_ties_too():
    tie = Tie("loss", None, 0.05, (SPARSITY,))
    found = [{"loss": 0.1, "sparsity": 0.2}, {"loss": 0.15, "sparsity": 0.9}, {"loss": 0.16, "sparsity": 1.0}]
    tied, others = judging.by_preference(found, lambda f: f, tie, None)
    assert (tied, others) == ([found[1], found[0]], [found[2]])


def test_a_percentage_has_no_confidence_interval():
    with pytest.raises(CheckpointError, match=r"74\.7 is no fraction"):
        judging.by_preference([(74.7, 0.5, 1, 0)], facts_of, Tie("accuracy", 0.95, None, (SPARSITY,)), 60)
