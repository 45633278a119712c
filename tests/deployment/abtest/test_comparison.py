"""Intervals are those published and scipy's; a verdict at every few users errs no more often than alpha."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.abtest.comparison import Rule, Sample, compare, decide, sequence, welch

RUNS, USERS, EVERY = 400, 3000, 25
numbers = st.lists(st.floats(-1e3, 1e3).map(lambda x: round(x, 3)), min_size=2, max_size=50)


@pytest.mark.filterwarnings("ignore:Precision loss")  # of scipy's, where values are equal
@given(numbers, numbers, st.floats(1e-4, 0.5))
@settings(max_examples=100, deadline=None)
def test_means_have_scipys_welch_interval(champion, challenger, alpha):
    found = compare(champion, challenger, binary=False, alpha=alpha)
    assert found.difference == pytest.approx(stats.tmean(challenger) - stats.tmean(champion), abs=1e-9)
    if len(set(champion)) + len(set(challenger)) > 2:
        test = stats.ttest_ind(challenger, champion, equal_var=False)
        reference = test.confidence_interval(1 - alpha)
        assert found.interval == pytest.approx((reference.low, reference.high), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("unit", [1e-150, 1e-100, 1e100 / 3])
def test_the_interval_of_means_is_in_the_unit_of_the_outcomes(unit):
    reference = compare([1, 2], [1, 3], binary=False, alpha=0.05)
    found = compare([unit, 2 * unit], [unit, 3 * unit], binary=False, alpha=0.05)
    assert found.interval == pytest.approx([unit * end for end in reference.interval], rel=1e-9)


@pytest.mark.parametrize("alpha", [1e-12, 0.05, 0.5])
@pytest.mark.parametrize("n", [2, 10**7, 10**9, 10**15])
def test_every_alpha_and_number_of_outcomes_has_an_interval(n, alpha):
    low, high = welch(Sample(n, 0.0, 1.0), Sample(n, 0.0, 1.0), alpha)
    expected = stats.t.isf(alpha / 2, 2 * n - 2) * math.sqrt(2 / n)
    assert (-low, high) == pytest.approx((expected, expected), rel=1e-6)
    assert math.isfinite(sequence(Sample(n, 0.0, 1.0), Sample(n, 0.0, 1.0), Rule(alpha=alpha))[1])


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    # Table II of Newcombe 1998, method 10, 95 %: 56/70 less 48/80, 9/10 less 3/10, 10/10 less 0/10.
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_a_difference_of_proportions_has_the_published_interval(one, other, low, high):
    found = compare(*([1] * won + [0] * (n - won) for won, n in (other, one)), binary=True, alpha=0.05)
    assert found.interval == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("champion", "challenger", "binary"),
    [([], [1.0, 2.0], False), ([1.0], [1.0, 2.0], False), ([0.1] * 6, [0.7] * 6, False), ([], [1], True)],
)
def test_too_few_outcomes_have_an_infinite_interval(champion, challenger, binary):
    found = compare(champion, challenger, binary=binary, alpha=0.05)
    assert found.interval == (-math.inf, math.inf)


def looks(seed, p, effect, share):
    """Yield both samples at each look of an experiment on success rates p and p + effect."""
    draw = np.random.default_rng(seed)
    arm = draw.random(USERS) < share
    won = draw.random(USERS) < np.where(arm, p + effect, p)
    n = [np.cumsum(~arm), np.cumsum(arm)]
    wins = [np.cumsum(won & ~arm), np.cumsum(won & arm)]
    for at in range(EVERY - 1, USERS, EVERY):
        yield tuple(proportion(int(wins[i][at]), int(n[i][at])) for i in (0, 1))


def proportion(wins, n):
    mean = wins / n if n else math.nan
    return Sample(n, mean, n * mean * (1 - mean) / (n - 1) if n > 1 else math.nan)


def ends(seed, rule, **experiment):
    """Return the first decision, and after how many users it fell."""
    for champion, challenger in looks(seed, **experiment):
        verdict = decide(champion, challenger, rule, binary=True)
        if verdict.decision != "continue":
            return verdict.decision, verdict.n
    return "continue", USERS


@pytest.mark.parametrize(("p", "share"), [(0.5, 0.5), (0.1, 0.5), (0.3, 0.1)])
def test_without_an_effect_peeking_finds_one_no_more_often_than_alpha(p, share):
    rule = Rule(alpha=0.05, planned=500)
    decided = sum(ends(seed, rule, p=p, effect=0.0, share=share)[0] != "continue" for seed in range(RUNS))
    assert decided <= rule.alpha * RUNS


@pytest.mark.parametrize("effect", [0.12, -0.12])
def test_a_real_effect_is_found_and_on_the_right_side(effect):
    rule = Rule(alpha=0.05, planned=500)
    found = [ends(seed, rule, p=0.4, effect=effect, share=0.5) for seed in range(100)]
    right = "promote" if effect > 0 else "keep"
    assert sum(decision == right for decision, _ in found) >= 99
    # The least users that a test of one look with a power of 80 % takes are 540: looking often costs some.
    assert np.median([n for _, n in found]) < 2 * 540


def test_an_experiment_without_an_effect_ends_when_a_margin_is_given():
    none = proportion(5000, 10_000)
    assert decide(none, none, Rule(), binary=True).decision == "continue"
    verdict = decide(none, none, Rule(margin=0.05), binary=True)
    assert verdict.decision == "keep"
    assert "not better by 0.05" in verdict.reason


def test_no_decision_falls_before_the_means_are_nearly_normal():
    rule = Rule(least=100)
    few = decide(proportion(0, 99), proportion(99, 99), rule, binary=True)
    assert (few.decision, few.n, few.interval) == ("continue", 198, (-math.inf, math.inf))
    rare = decide(proportion(9, 900), proportion(300, 900), rule, binary=True)
    assert (rare.decision, rare.reason) == ("continue", "an arm has 9 successes or failures of at least 10")
    assert decide(proportion(10, 900), proportion(300, 900), rule, binary=True).decision == "promote"
    same = Sample(500, 1.0, 0.0)
    assert decide(same, Sample(500, 2.0, 0.0), rule, binary=False).decision == "continue"


@given(st.integers(20, 100_000), st.floats(0.001, 0.2))
def test_it_is_tightest_at_the_users_that_were_planned(planned, alpha):
    arm = Sample(planned, 0.0, 1.0)

    def half(guess):
        return sequence(arm, arm, Rule(alpha=alpha, planned=guess))[1]

    assert half(planned) < 1.003 * min(
        half(max(1, round(planned * f))) for f in (0.3, 0.5, 0.7, 0.9, 1.2, 2, 4)
    )


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: Sample.of([1.0, math.nan]), "NaN, infinite"),
        (lambda: compare([0, 1], [0, 0.5], binary=True, alpha=0.05), "neither 0 nor 1"),
        (lambda: Sample.of([1.0, 1e200]), "beyond 1e"),
        (lambda: compare([0, 1], [0, 1], binary=True, alpha=1), "alpha=1"),
        (lambda: Rule(alpha="a"), "alpha='a'"),
        (lambda: Rule(alpha=1e-320), "alpha=1e-320"),
        (lambda: Rule(planned=math.nan), "planned=nan"),
        (lambda: Rule(planned="x"), "planned='x'"),
        (lambda: Rule(planned=10**400), "planned=1000"),
        (lambda: Rule(least=math.inf), "least=inf"),
        (lambda: Rule(margin=None), "margin=None"),
        (lambda: Rule(alpha=0.0), "alpha=0.0"),
        (lambda: Rule(planned=0), "planned"),
        (lambda: Rule(least=1), "least"),
        (lambda: Rule(margin=-1.0), "margin=-1.0"),
        (lambda: Rule(margin=math.nan), "margin=nan"),
    ],
)
def test_bad_input_is_one_clear_line(call, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        call()
