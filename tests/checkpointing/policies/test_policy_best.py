"""best and top_k."""

import pytest

from peakpoint.checkpointing.events import EpochEnd, EvalEnd, StepEnd
from peakpoint.checkpointing.policy import Save
from peakpoint.checkpointing.storage.manifest import MILESTONE
from tests.checkpointing.policies import policy_cases as case
from tests.checkpointing.policies.policy_cases import INF, NAN


@pytest.mark.parametrize(
    ("accuracies", "saved_epochs"),
    [
        ([0.1, 0.5, 0.9], [1, 2, 3]),
        ([0.9, 0.5, 0.1], [1]),
        ([NAN, 0.1, 0.5, 0.9], [2, 3, 4]),
        ([0.5, NAN, 0.6], [1, 3]),
        ([INF, 0.1], [2]),
        ([-INF, 0.1], [2]),
        ([None, 0.1], [2]),
        ([0.0], [1]),
        ([0.0, 0.0], [1]),
        ([0.5, 0.5, 0.6], [1, 3]),
        ([-0.5, 0.0], [1, 2]),
        ([NAN, NAN], []),
    ],
)
def test_best_is_saved_when_it_is_better_than_ever(accuracies, saved_epochs):
    policy = case.best()
    saved = [int(stem[-4:]) for stem in case.stems(policy, case.evaluations(*accuracies))]
    assert saved == saved_epochs
    unranked = sum(a is None or a - a != 0 for a in accuracies)
    assert policy.state_dict()["unranked"] == {"accuracy": unranked}


def test_the_decision_names_role_file_and_reason():
    policy = case.best(accuracy="max", loss="min")
    first = policy.decide(case.evaluation(5, 0.84, loss=0.2))
    second = policy.decide(case.evaluation(7, 0.85, loss=0.1234))
    assert first[0] == Save(
        "best_accuracy", "accuracy 0.8400 is the first", MILESTONE, "best_accuracy_0.8400_epoch_0005"
    )
    assert second == [
        Save(
            "best_accuracy",
            "accuracy 0.8500 beats 0.8400 of epoch 5",
            MILESTONE,
            "best_accuracy_0.8500_epoch_0007",
        ),
        Save("best_loss", "loss 0.1234 beats 0.2000 of epoch 5", MILESTONE, "best_loss_0.1234_epoch_0007"),
    ]


def test_smaller_is_better_in_mode_min_and_metrics_do_not_mix():
    policy = case.best(accuracy="max", loss="min")
    events = [
        case.evaluation(1, 0.5, loss=1.0),
        case.evaluation(2, 0.4, loss=0.9),
        case.evaluation(3, 0.6, loss=1.1),
    ]
    tags = [[d.tag for d in decisions] for decisions in case.answers(policy, events)]
    assert tags == [["best_accuracy", "best_loss"], ["best_loss"], ["best_accuracy"]]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_an_equal_value_is_no_better(mode):
    policy = case.best(accuracy=mode)
    events = [case.evaluation(epoch, 0.5) for epoch in (1, 2)]
    assert [len(decisions) for decisions in case.answers(policy, events)] == [1, 0]


@pytest.mark.parametrize("loss", [NAN, INF])
@pytest.mark.parametrize("name", ["loss", "val_loss"])
def test_a_network_whose_loss_is_not_finite_is_best_in_nothing(name, loss):
    policy = case.best(accuracy="max", f1_score="max")
    metrics = {"accuracy": 0.9, "f1_score": 0.9, name: loss}
    assert policy.decide(EvalEnd(1, 10, metrics, 0.0, 0)) == []
    assert policy.state_dict()["unranked"] == {"accuracy": 1, "f1_score": 1}
    only_training = {"accuracy": 0.8, "f1_score": 0.8, "train_loss": loss}
    assert len(policy.decide(EvalEnd(2, 20, only_training, 0.0, 0))) == 2


def test_min_delta_is_compared_with_the_best_and_not_with_the_last():
    policy = case.best(min_delta=0.01)
    events = case.evaluations(0.5, 0.505, 0.509, 0.52)
    assert case.stems(policy, events) == [
        "best_accuracy_0.5000_epoch_0001",
        "best_accuracy_0.5200_epoch_0004",
    ]


def test_a_metric_name_is_made_safe_for_files():
    settings = case.best(**{"val/top 1": "max"})
    [decision] = settings.build().decide(case.evaluation(1, **{"val/top 1": 0.5}))
    assert decision.tag == "best_val_top_1"
    assert decision.stem == "best_val_top_1_0.5000_epoch_0001"


def test_other_events_are_ignored():
    for policy in (case.best(), case.top_k()):
        assert case.answers(policy, [StepEnd(1, 1), EpochEnd(1, 1)]) == [[], []]


def test_worse_after_resume_never_becomes_best():
    before = case.best()
    case.answers(before, case.evaluations(0.9))
    after = case.best()
    after.load_state_dict(before.state_dict())
    assert after.decide(case.evaluation(2, 0.3)) == []
    assert len(after.decide(case.evaluation(3, 0.91))) == 1


def test_a_metric_added_on_resume_starts_and_one_removed_is_forgotten():
    before = case.best(accuracy="max", loss="min")
    before.decide(case.evaluation(1, 0.9, loss=0.1))
    after = case.best(accuracy="max", f1_score="max")
    after.load_state_dict(before.state_dict())
    assert [d.tag for d in after.decide(case.evaluation(2, 0.8, loss=0.01, f1_score=0.0))] == [
        "best_f1_score"
    ]
    assert set(after.state_dict()["best"]) == {"accuracy", "f1_score"}
    assert set(after.state_dict()["unranked"]) == {"accuracy", "f1_score"}


TAG = "best_accuracy"


@pytest.mark.parametrize(
    ("keep", "values", "expected"),
    [
        (1, [0.5, 0.9, 0.7], [2]),
        (2, [0.5, 0.9, 0.7], [2, 3]),
        (9, [0.5, 0.9, 0.7], [1, 2, 3]),
        (None, [0.5, 0.9, NAN], [1, 2, 3]),
        (1, [0.5, 0.5], [2]),
        (1, [0.0, -1.0], [1]),
        (1, [NAN, 0.1], [2]),
        (1, [], []),
    ],
)
def test_best_keeps_the_best_of_its_own(keep, values, expected):
    manifests = [case.manifest(n, TAG, accuracy=v) for n, v in enumerate(values, 1)]
    manifests.append(case.manifest(99, "top_k", accuracy=1.0))
    assert case.kept(case.best(keep=keep), manifests) == expected


def test_the_current_best_is_kept_beside_a_better_file_of_an_abandoned_future():
    policy = case.best()
    policy.decide(case.evaluation(5, 0.85))
    manifests = [case.manifest(5, TAG, accuracy=0.85), case.manifest(8, TAG, accuracy=0.9)]
    reasons = {m.sequence: why for m, why in policy.keeps(manifests).items()}
    assert reasons == {5: "the current best_accuracy: 0.8500", 8: "number 1 of 1 for best_accuracy: 0.9000"}


def test_a_step_saved_again_by_a_resumed_run_counts_once():
    manifests = [
        case.manifest(1, TAG, "top_k", epoch=3, accuracy=0.9),
        case.manifest(2, TAG, "top_k", epoch=2, accuracy=0.8),
        case.manifest(7, TAG, "top_k", epoch=3, accuracy=0.9),
    ]
    assert case.kept(case.best(keep=2), manifests) == [2, 7]
    assert case.kept(case.top_k(k=2), manifests) == [2, 7]


def test_one_file_may_be_best_of_two_metrics():
    both = case.manifest(1, "best_accuracy", "best_loss", accuracy=0.9, loss=0.1)
    [why] = case.best(accuracy="max", loss="min").keeps([both]).values()
    assert why == "number 1 of 1 for best_accuracy: 0.9000; number 1 of 1 for best_loss: 0.1000"


@pytest.mark.parametrize(
    ("mode", "k", "values", "saved_epochs"),
    [
        ("max", 2, [0.1, 0.2, 0.3, 0.15, 0.25], [1, 2, 3, 5]),
        ("min", 2, [0.1, 0.2, 0.3, 0.15, 0.05], [1, 2, 4, 5]),
        ("max", 2, [0.5, 0.5, 0.5, 0.6], [1, 2, 4]),
        ("max", 1, [0.0, NAN, INF, 0.0, 0.1], [1, 5]),
        ("max", 3, [None, NAN, 0.1], [3]),
    ],
)
def test_top_k_saves_what_is_among_the_k_best(mode, k, values, saved_epochs):
    policy = case.top_k(k, mode)
    stems = case.stems(policy, case.evaluations(*values))
    assert len(policy.state_dict()["best"]) == min(k, len(saved_epochs))
    assert stems == [f"top_k_accuracy_{values[e - 1]:.4f}_epoch_{e:04d}" for e in saved_epochs]


def test_top_k_says_the_place():
    policy = case.top_k(2)
    policy.decide(case.evaluation(1, 0.9))
    [decision] = policy.decide(case.evaluation(2, 0.8))
    assert decision == Save(
        "top_k", "accuracy 0.8000 is number 2 of the best 2", MILESTONE, "top_k_accuracy_0.8000_epoch_0002"
    )


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("max", [0.1, 0.4, 0.2, 0.3], [2, 4]),
        ("min", [0.1, 0.4, 0.2, 0.3], [1, 3]),
        ("max", [0.5, 0.5, 0.5], [1, 2]),
        ("max", [NAN, 0.0], [2]),
    ],
)
def test_top_k_keeps_the_k_best(mode, values, expected):
    manifests = [case.manifest(n, "top_k", accuracy=v) for n, v in enumerate(values, 1)]
    manifests.append(case.manifest(99, "best_accuracy", accuracy=0.25))
    assert case.kept(case.top_k(2, mode), manifests) == expected


@pytest.mark.parametrize(("k", "saved_epochs"), [(1, [4]), (2, [4]), (3, [3, 4])])
def test_a_changed_k_applies_on_resume(k, saved_epochs):
    before = case.top_k(2)
    case.answers(before, case.evaluations(0.8, 0.9))
    after = case.top_k(k)
    after.load_state_dict(before.state_dict())
    events = [case.evaluation(e, v) for e, v in enumerate([0.1, 0.95, 0.5], 3)]
    assert [int(stem[-4:]) for stem in case.stems(after, events)] == saved_epochs


@pytest.mark.parametrize(("files", "lost"), [([0.9], []), ([0.7], [1])])
def test_top_k_forgets_a_value_without_a_file_unless_k_files_are_as_good(files, lost):
    policy = case.top_k(1)
    policy.decide(case.evaluation(1, 0.8))
    there = [case.manifest(n, "top_k", accuracy=value) for n, value in enumerate(files, 2)]
    what = "0.8000 of epoch {}, among the top_k, is in no checkpoint: the next best value is saved"
    assert policy.reconcile(there) == [what.format(epoch) for epoch in lost]
    assert len(policy.state_dict()["best"]) == 1 - len(lost)
