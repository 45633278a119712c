"""Rules against facts: margins as people write them, an order that does not depend on who asks, ties."""

import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.selection import judging
from peakpoint.deployment.selection.rules import MARGINS, NUMBERS, Key, Requirement, Tie

thousandths = st.integers(-2000, 2000).map(lambda n: n / 1000)
values = st.floats(allow_nan=False, allow_infinity=False, width=32)
ACCURACY, SPARSITY = (Key(metric=name, mode="max") for name in ("accuracy", "sparsity"))


def failure(operator, bound, facts, references=None, metric="m", vs=None):
    """Return the only sentence against facts by one bound, None where they meet it."""
    vs = "champion" if operator in MARGINS and vs is None else vs
    rule = Requirement(metric=metric, vs=vs, **{operator: bound})
    return next(iter(judging.failures(rule, facts, references or {})), None)


def meets(operator, value, bound, reference=None):
    return failure(operator, bound, {"m": value}, {"champion": {"m": reference}}) is None


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
    assert "has no meaning: -2 is below 0" in failure(
        "max_ratio", 1.0, {"m": -3.0}, {"champion": {"m": -2.0}}
    )


@given(values, values)
def test_inclusive_and_strict_bounds_part_every_number(value, bound):
    assert meets("min", value, bound) != meets("below", value, bound)
    assert meets("max", value, bound) != meets("above", value, bound)
    assert meets("min", bound, bound)
    assert not meets("above", bound, bound)


@pytest.mark.parametrize("operator", [*NUMBERS, *MARGINS])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_a_number_never_qualifies(operator, value):
    facts, why = ({}, "m is not recorded") if value is None else ({"m": value}, f"m is {value}")
    champion = {"champion": {"m": 0.0}}
    assert failure(operator, 0.0, facts, champion).startswith(f"{why}: it must be ")
    if operator in MARGINS:  # nor can anything be measured against it
        assert failure(operator, 0.0, {"m": 0.0}, {"champion": facts}).startswith(f"for the champion, {why}")


def test_a_rule_against_nobody_is_passed_over():
    assert failure("min_delta", 0.0, {}) is None


@pytest.mark.parametrize(
    ("operator", "bound", "wanted"),
    [
        ("min_delta", 0.0, "at least the champion (0.75)"),
        ("min_delta", -0.01, "at least the champion (0.75) - 0.01"),
        ("min_delta", 0.02, "at least the champion (0.75) + 0.02"),
        ("max_delta", -0.5, "at most the champion (0.75) - 0.5"),
        ("min_ratio", 1.5, "at least 1.5 times the champion (0.75)"),
        ("max_ratio", 0.5, "at most 0.5 times the champion (0.75)"),
    ],
)
def test_a_margin_reads_as_a_sentence(operator, bound, wanted):
    assert failure(operator, bound, {"m": 0.5}, {"champion": {"m": 0.75}}) == (
        f"m is 0.5: it must be {wanted}"
    )


def test_each_bound_has_its_own_sentence():
    rule = Requirement(metric="m", min=0.7, below=1)
    assert judging.failures(rule, {"m": 0.5}, {}) == ["m is 0.5: it must be at least 0.7"]
    assert judging.failures(rule, {}, {}) == [
        f"m is not recorded: it must be {bound}" for bound in ("at least 0.7", "below 1")
    ]


def test_a_sparsity_is_met_by_the_count_that_a_mask_can_reach():
    just_below, target = {"sparsity": 0.7 - 5e-7}, {"target": {"sparsity": 0.7}}
    assert failure("min", 0.7, just_below, metric="sparsity") is None
    assert failure("min_delta", 0, just_below, target, metric="sparsity", vs="target") is None
    assert failure("min", 0.7, {"sparsity": 0.6999}, metric="sparsity")


def candidate(step=0, **facts):
    manifest = SimpleNamespace(global_step=step, sequence=0, run="", file="")
    return judging.Candidate(Path(), manifest, facts)


fractions = st.integers(0, 60).map(lambda n: n / 60)
candidates = st.lists(
    st.builds(candidate, st.integers(), accuracy=fractions, sparsity=fractions, bytes=st.integers(1, 3)),
    min_size=1,
    unique_by=lambda one: one.manifest.global_step,
)


def ranked(found):
    return judging.by_rank(found, [ACCURACY, Key(metric="bytes", mode="min")])


def preferred(found, samples=60, **how):
    tie = Tie(metric="accuracy", prefer=[SPARSITY], **how)
    return judging.by_preference(ranked(found), tie, samples)


@given(candidates, st.randoms())
def test_the_order_of_asking_does_not_matter(found, chance: random.Random):
    other = found.copy()
    chance.shuffle(other)
    assert ranked(found) == ranked(other)
    assert preferred(found, confidence=0.9) == preferred(other, confidence=0.9)


@given(candidates)
def test_a_ranking_is_by_the_first_key_then_the_next_then_the_later(found):
    places = [
        (-one.facts["accuracy"], one.facts["bytes"], -one.manifest.global_step) for one in ranked(found)
    ]
    assert places == sorted(places)
    assert set(ranked(found)) == set(found)


@given(candidates, st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_a_tie_is_what_scipy_cannot_distinguish_from_the_best(found, confidence):
    ranking = ranked(found)
    best = round(ranking[0].facts["accuracy"] * 60)
    low = binomtest(best, 60).proportion_ci(confidence, method="wilson").low - 1e-9
    tied = [one for one in ranking if one.facts["accuracy"] >= low]
    tied.sort(key=lambda one: -one.facts["sparsity"])  # stable: those alike stay as they are ranked
    others = [one for one in ranking if one not in tied]
    assert preferred(found, confidence=confidence) == tied + others


@given(candidates)
def test_no_distance_ties_only_what_is_equal(found):
    best = ranked(found)[0].facts["accuracy"]
    equal = [one for one in found if one.facts["accuracy"] == best]
    assert set(preferred(found, within=0.0)[: len(equal)]) == set(equal)
    sparsities = [one.facts["sparsity"] for one in preferred(found, within=1.0)]
    assert sparsities == sorted(sparsities, reverse=True)


def test_what_has_no_value_for_the_preference_comes_last_of_the_tied():
    found = [candidate(n, accuracy=0.9, sparsity=s, bytes=1) for n, s in enumerate((math.inf, 0.1, math.nan))]
    found.append(candidate(9, accuracy=0.7, sparsity=1, bytes=1))
    assert preferred(found, within=0.1) == [found[1], found[2], found[0], found[3]]


def test_lower_is_better_ties_too():
    tie = Tie(metric="loss", within=0.05, prefer=[SPARSITY])
    found = [candidate(loss=x, sparsity=s) for x, s in ((0.1, 0.2), (0.15, 0.9), (0.16, 1.0))]
    assert judging.by_preference(found, tie, None) == [found[1], found[0], found[2]]


def test_a_percentage_has_no_confidence_interval():
    with pytest.raises(CheckpointError, match=r"74\.7 is not between 0 and 1"):
        preferred([candidate(accuracy=74.7, sparsity=0.5, bytes=1)], confidence=0.95)
