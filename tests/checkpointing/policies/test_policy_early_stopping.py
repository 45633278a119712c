"""early_stopping."""

import pytest

from peakpoint.checkpointing.policy import Stop
from tests.checkpointing.policies import policy_cases as case
from tests.checkpointing.policies.policy_cases import INF, NAN


@pytest.mark.parametrize(
    ("settings", "values", "first_stop"),
    [
        (case.early_stopping(3), [0.1, 0.2, 0.2, 0.2, 0.2], 5),
        (case.early_stopping(3), [0.1, 0.2, 0.1, 0.1, 0.3, 0.1, 0.1], None),
        (case.early_stopping(1), [0.5, 0.4], 2),
        (case.early_stopping(2, mode="min"), [0.5, 0.4, 0.45, 0.41], 4),
        (case.early_stopping(2, min_delta=0.1), [0.5, 0.55, 0.59, 0.9], 3),
        (case.early_stopping(2), [NAN, 0.1, INF, None], 4),
        (case.early_stopping(2), [NAN, NAN], 2),
        (case.early_stopping(2), [0.0, -0.1, 0.0], 3),
    ],
)
def test_stops_after_patience_evaluations_without_improvement(settings, values, first_stop):
    stops = case.stops(settings.build(), case.evaluations(*values))
    assert (stops[0] if stops else None) == first_stop


def test_the_reason_is_a_sentence():
    policy = case.early_stopping(2, 0.001)
    decisions = [d for e in (12, 13, 14) for d in policy.decide(case.evaluation(e, 0.85))]
    assert decisions == [
        Stop("accuracy has not improved by more than 0.001 for 2 evaluations; best 0.8500 at epoch 12")
    ]
    never = case.early_stopping(1)
    assert never.decide(case.evaluation(1, NAN)) == [Stop("accuracy was not finite in all 1 evaluations")]


def test_a_metric_that_is_never_measured_stops_nothing():
    assert case.stops(case.early_stopping(1), case.evaluations(*[None] * 9)) == []


@pytest.mark.parametrize(("patience", "first_stop"), [(1, 3), (2, 3), (3, 4), (5, 6)])
def test_the_count_continues_on_resume_and_a_changed_patience_applies(patience, first_stop):
    before = case.early_stopping(3)
    assert case.stops(before, case.evaluations(0.9, 0.8)) == []
    after = case.early_stopping(patience)
    after.load_state_dict(before.state_dict())
    assert case.stops(after, [case.evaluation(e, 0.3) for e in (3, 4, 5, 6)])[0] == first_stop


def test_it_keeps_nothing():
    assert case.early_stopping().keeps([case.manifest(1, "best_accuracy", accuracy=1.0)]) == {}
