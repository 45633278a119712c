"""A verdict may be asked for after every few users, and is wrong no more often than it says."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.abtest.sequential import Rule, decide, sequence
from peakpoint.deployment.selection.intervals import Sample, newcombe

RUNS, USERS, EVERY = 400, 3000, 25


def looks(seed, p, effect, share):
    """An experiment on success rates p and p + effect: both samples at each look."""
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
    """The first decision, and after how many users."""
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


def test_an_interval_for_one_look_would_find_one_far_more_often():
    def leaves_out_zero(champion, challenger):
        low, high = newcombe(champion, challenger, 0.05)
        return champion.n >= 100 <= challenger.n and not low <= 0 <= high

    decided = sum(
        any(leaves_out_zero(*pair) for pair in looks(seed, p=0.5, effect=0.0, share=0.5))
        for seed in range(RUNS)
    )
    assert decided > 3 * 0.05 * RUNS


@pytest.mark.parametrize("effect", [0.12, -0.12])
def test_a_real_effect_is_found_and_on_the_right_side(effect):
    rule = Rule(alpha=0.05, planned=500)
    found = [ends(seed, rule, p=0.4, effect=effect, share=0.5) for seed in range(100)]
    right = "promote" if effect > 0 else "keep"
    assert sum(decision == right for decision, _ in found) >= 99
    # The least users that a test of one look with a power of 80 % takes are 540: looking often costs some.
    assert np.median([n for _, n in found]) < 2 * 540


def test_numbers_are_compared_in_the_same_way():
    draw = np.random.default_rng(0)
    rule = Rule(planned=500)
    wrong = right = 0
    for _ in range(200):
        a, b = draw.exponential(1, 2000), draw.exponential(1, 2000)
        for effect in (0.0, 0.5):
            verdicts = (
                decide(_sample(a[:n]), _sample(b[:n] + effect), rule, binary=False).decision
                for n in range(100, 2001, 50)
            )
            first = next((v for v in verdicts if v != "continue"), None)
            wrong += effect == 0 and first is not None
            right += effect > 0 and first == "promote"
    assert wrong <= rule.alpha * 200
    assert right == 200


def _sample(values):
    return Sample(len(values), float(values.mean()), float(values.var(ddof=1)))


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
    "bad", [{"alpha": 0.0}, {"planned": 0}, {"least": 1}, {"margin": -1.0}, {"margin": math.nan}]
)
def test_a_rule_that_cannot_be_is_one_clear_line(bad):
    with pytest.raises(CheckpointError) as caught:
        Rule(**bad)
    assert next(iter(bad)) in str(caught.value)
