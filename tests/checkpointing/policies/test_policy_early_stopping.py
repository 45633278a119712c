"""early_stopping."""

import pytest

from peakpoint.checkpointing.policy import Outlook, Stop
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
        (case.early_stopping(3, stop_at=0.5), [0.4, 0.5, 0.6], 2),
        (case.early_stopping(3, stop_at=0.5, mode="min"), [0.6, 0.51, 0.5], 3),
        (case.early_stopping(3, stop_at=0.5), [0.4, INF, NAN], None),
        (case.early_stopping(3, diverged_at=0.1), [0.2, 0.1, 0.2], 2),
        (case.early_stopping(3, diverged_at=9.0, mode="min"), [2.0, 8.9, 9.0], 3),
        (case.early_stopping(3, diverged_at=0.0), [0.1, NAN, None], None),
        (case.early_stopping(2, from_epoch=3), [0.9, 0.1, 0.2, 0.3, 0.3, 0.3], 6),
        (case.early_stopping(2, from_epoch=3, stop_at=0.9), [0.9, 0.9, 0.8, 0.9], 4),
        (case.early_stopping(2, from_epoch=3, diverged_at=0.1), [0.1, 0.0, 0.2, 0.1], 4),
        (case.early_stopping(1, from_epoch=0), [0.5, 0.4], 2),
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


def test_a_bound_is_named_in_the_reason():
    policy = case.early_stopping(stop_at=0.9, diverged_at=0.01)
    assert policy.decide(case.evaluation(3, 0.91)) == [
        Stop("accuracy 0.9100 has reached stop_at=0.9 at epoch 3")
    ]
    assert policy.decide(case.evaluation(4, 0.01)) == [
        Stop("diverged at epoch 4: accuracy 0.0100 has reached diverged_at=0.01")
    ]


@pytest.mark.parametrize(("from_epoch", "first_stop"), [(None, 6), (0, 2), (2, 3)])
def test_the_end_of_the_ramp_is_waited_for_unless_from_epoch_is_given(from_epoch, first_stop, caplog):
    policy = case.early_stopping(1, from_epoch=from_epoch)
    with caplog.at_level("INFO", "peakpoint"):
        policy.prepare(Outlook(epochs=9, steps=90, evaluations=9, sparsity=0.7, ramp_end=45))
    falling = case.evaluations(0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
    assert case.stops(policy, falling)[0] == first_stop
    expected = "early_stopping counts from the end of the pruning ramp: step 45"
    assert (caplog.messages == [expected]) is (from_epoch is None)


def test_a_dense_run_waits_for_nothing():
    policy = case.early_stopping(1)
    policy.prepare(Outlook(epochs=9, steps=90, evaluations=9, sparsity=0.0))
    assert case.stops(policy, case.evaluations(0.9, 0.8))[0] == 2


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
