"""The report of an experiment, from a log that a router and users of known habits wrote."""

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from peakpoint.deployment.abtest import Log, Router, Rule, design, report, sample_ratio, study

WEIGHTS = {"champion": 2.0, "challenger_1": 1.0, "challenger_2": 1.0, "challenger_off": 0.0}
VERSIONS = {"champion": "1.0.0", "challenger_1": "1.1.0", "challenger_2": "1.2.0"}
RATES = {"champion": 0.3, "challenger_1": 0.7, "challenger_2": 0.3}
RULE = Rule(alpha=0.04, planned=200, least=50)


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log.jsonl", "colours")


def visited(log, users, weights=WEIGHTS, *, lost=()):
    """Log users who are routed, shown, and succeed at their arm's rate; `lost` arms have no outcome."""
    router, of, chance = Router("colours", weights), design(weights, VERSIONS), random.Random(0)
    for i in range(users):
        alias = router.route(f"user-{i}")
        log.exposed(f"user-{i}", alias, VERSIONS[alias], of)
        succeeded = chance.random() < RATES[alias]
        if alias not in lost:
            log.outcome(f"user-{i}", succeeded)


def reported(log, weights=WEIGHTS):
    found = study(log.path, "colours")
    return report(found, design(weights, VERSIONS), weights, RULE, binary=True)


def test_each_challenger_has_its_own_verdict(log):
    visited(log, 1200)
    found = reported(log)
    assert {alias: f.verdict.decision for alias, f in found.findings.items()} == {
        "challenger_1": "promote",
        "challenger_2": "continue",
    }
    better = found.findings["challenger_1"]
    assert better.comparison.method == "newcombe"
    assert better.verdict.interval[0] < 0.4 < better.verdict.interval[1]
    assert better.verdict.n == found.outcomes["champion"] + found.outcomes["challenger_1"]
    assert sum(found.users.values()) == 1200
    assert found.outcomes == found.users
    assert found.ratio.ok is True
    assert (found.set_aside, found.crossed, found.strays, found.unreadable) == (0, 0, 0, 0)


def test_several_challengers_share_alpha(log):
    visited(log, 1200)
    both = reported(log).findings["challenger_1"].verdict.interval
    found = study(log.path, "colours")
    one = report(found, design(WEIGHTS, VERSIONS), {"champion": 1, "challenger_1": 1}, RULE, binary=True)
    alone = one.findings["challenger_1"].verdict.interval
    assert both[0] < alone[0] < alone[1] < both[1]


def test_lost_outcomes_and_users_sent_past_the_router_stop_the_verdict(log):
    visited(log, 1200, lost=("challenger_2",))
    found = reported(log)
    assert (found.ratio.ok, found.outcome_ratio.ok) == (True, False)
    assert found.findings["challenger_1"].verdict.decision == "continue"
    assert found.findings["challenger_1"].verdict.reason.startswith("Sample-ratio mismatch")

    for i in range(300):
        log.exposed(f"past-{i}", "challenger_1", "1.1.0", design(WEIGHTS, VERSIONS))
    assert reported(log).ratio.ok is False


def test_users_of_other_weights_are_set_aside_and_those_who_crossed_are_counted(log):
    later = {"champion": 1.0, "challenger_1": 3.0}
    visited(log, 400)
    visited(log, 700, later)
    first, second = reported(log), reported(log, later)
    assert (sum(first.users.values()), first.set_aside) == (400, 300)
    assert (sum(second.users.values()), second.set_aside) == (300, 400)
    old, new = Router("colours", WEIGHTS), Router("colours", later)
    moved = sum(old.route(f"user-{i}") != new.route(f"user-{i}") for i in range(400))
    assert first.crossed == second.crossed == moved > 0


def test_an_experiment_nobody_came_to_is_a_report_in_strict_json(log):
    found = reported(log)
    plain = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert plain["users"] == {"champion": 0, "challenger_1": 0, "challenger_2": 0}
    assert plain["findings"]["challenger_1"]["verdict"]["interval"] == ["-inf", "inf"]
    assert plain["ratio"]["ok"] is None


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
