"""sparsity: the best checkpoint for each target."""

import pytest

from peakpoint.checkpointing.policies.sparsity import peak
from peakpoint.checkpointing.policy import Save
from peakpoint.checkpointing.storage.manifest import MILESTONE
from tests.checkpointing.policies import policy_cases as case
from tests.checkpointing.policies.policy_cases import INF, NAN


def run(settings, rows):
    """The epochs at which each target is saved; rows are (sparsity, accuracy[, mask version])."""
    policy = settings.build()
    saved = {}
    for epoch, (sparsity, accuracy, *version) in enumerate(rows, 1):
        event = case.evaluation(epoch, accuracy, sparsity, version[0] if version else epoch)
        for decision in policy.decide(event):
            saved.setdefault(decision.tag.removeprefix("best_accuracy_at_sparsity_"), []).append(epoch)
    return saved


RAMP = [(0.0, 0.5), (0.3, 0.7), (0.5, 0.6), (0.6, 0.65), (0.7, 0.5), (0.7, 0.55)]


@pytest.mark.parametrize(
    ("settings", "rows", "saved"),
    [
        (case.sparsity(0.5, 0.7), RAMP, {"0.50": [3, 4], "0.70": [5, 6]}),
        (case.sparsity(0.5, 0.7, rule="window"), RAMP, {"0.50": [3], "0.70": [5, 6]}),
        (case.sparsity(0.9), RAMP, {}),
        # A mask reaches a target to within one weight in a million.
        (case.sparsity(0.7), [(0.7 - 5e-7, 0.1)], {"0.70": [1]}),
        (case.sparsity(0.7), [(0.7 - 5e-6, 0.1)], {}),
        # Unranked values.
        (case.sparsity(0.5), [(0.5, NAN), (0.5, 0.1), (0.5, INF), (0.5, None), (0.5, 0.2)], {"0.50": [2, 5]}),
        (case.sparsity(0.5), [(0.5, 0.0), (0.5, 0.0)], {"0.50": [1]}),
        (case.sparsity(0.5, mode="min"), [(0.4, 0.1), (0.5, 0.3), (0.6, 0.2)], {"0.50": [2, 3]}),
        (case.sparsity(0.5, min_delta=0.1), [(0.5, 0.3), (0.5, 0.35), (0.5, 0.45)], {"0.50": [1, 3]}),
        # A dense run, a target that names an existing one, and one that needs three digits.
        (case.sparsity(0.5, 0.0, -1.0), [(0.0, 0.9)], {}),
        (case.sparsity(0.5, 0.5, 0.50000001), [(0.5, 0.9)], {"0.50": [1]}),
        (case.sparsity(0.975, 0.97), [(0.972, 0.9), (0.98, 0.95)], {"0.97": [1, 2], "0.975": [2]}),
    ],
)
def test_best_for_each_target(settings, rows, saved):
    assert run(settings, rows) == saved


@pytest.mark.parametrize(
    ("rows", "saved"),
    [
        # The step from 0.48 to 0.52 passes the window of 0.50: the first evaluation after it counts, once.
        ([(0.48, 0.8), (0.52, 0.7), (0.53, 0.9), (0.60, 0.95)], [2]),
        ([(0.60, 0.8), (0.70, 0.9)], [1]),
        ([(0.48, 0.8), (0.495, 0.7), (0.505, 0.6), (0.52, 0.9)], [2]),
        ([(0.48, 0.8), (0.49, 0.7), (0.52, 0.9)], [2]),
        # A leap that ends in NaN waits for a value while the sparsity stays, and no longer.
        ([(0.48, 0.8), (0.52, NAN), (0.525, 0.6), (0.52, 0.9)], [3]),
        ([(0.48, 0.8), (0.52, NAN), (0.60, 0.9)], []),
        # Back below and over it again: another leap.
        ([(0.48, 0.8), (0.52, 0.6), (0.45, 0.9), (0.55, 0.7)], [2, 4]),
    ],
)
def test_a_leap_over_the_window_is_found(rows, saved):
    assert run(case.sparsity(0.5, rule="window"), rows).get("0.50", []) == saved


def test_without_jump_over_a_leap_is_missed():
    rows = [(0.48, 0.8), (0.52, 0.7)]
    assert run(case.sparsity(0.5, rule="window", jump_over=False), rows) == {}


@pytest.mark.parametrize(
    ("settled", "saved"),
    [(0, [1, 2, 3, 4, 5, 6, 7]), (1, [2, 3, 5, 6, 7]), (2, [3, 6, 7]), (3, [7]), (4, [])],
)
def test_settled_counts_evaluations_with_an_unchanged_mask(settled, saved):
    versions = [1, 1, 1, 2, 2, 2, 2]
    rows = [(0.5, n / 10, version) for n, version in enumerate(versions)]
    found = run(case.sparsity(0.5, settled=settled), rows).get("0.50", [])
    assert found == saved


def test_a_leap_waits_until_it_is_settled():
    rows = [(0.48, 0.9, 1), (0.52, 0.8, 2), (0.52, 0.7, 2), (0.52, 0.75, 2), (0.60, 0.95, 3), (0.60, 0.95, 3)]
    assert run(case.sparsity(0.5, rule="window", settled=1), rows) == {"0.50": [3]}


def test_the_decision_names_role_file_and_reason():
    policy = case.sparsity(0.7)
    policy.decide(case.evaluation(6, 0.8, 0.701))
    [decision] = policy.decide(case.evaluation(7, 0.8123, 0.7012))
    tag = "best_accuracy_at_sparsity_0.70"
    reason = "accuracy at sparsity 0.7012: 0.8123 beats 0.8000 of epoch 6"
    assert decision == Save(tag, reason, MILESTONE, f"{tag}_0.8123_epoch_0007")


def test_each_target_keeps_its_own_best():
    half, most = "best_accuracy_at_sparsity_0.50", "best_accuracy_at_sparsity_0.70"
    manifests = [
        case.manifest(1, half, accuracy=0.9),
        case.manifest(2, half, most, accuracy=0.8),
        case.manifest(3, most, accuracy=0.7),
        case.manifest(4, "best_accuracy", accuracy=0.99),
    ]
    assert case.kept(case.sparsity(0.5, 0.7), manifests) == [1, 2]
    assert case.kept(case.sparsity(0.5, 0.7, keep=2), manifests) == [1, 2, 3]
    assert case.kept(case.sparsity(0.7, keep=None), manifests) == [2, 3]
    policy = case.sparsity(0.7)
    policy.decide(case.evaluation(3, 0.7, 0.7))
    assert case.kept(policy, manifests) == [2, 3]


def test_of_equal_values_the_first_is_the_peak():
    found = [case.manifest(n, "best_accuracy", accuracy=0.9) for n in (2, 1, 3)]
    assert peak(found, metric="accuracy", mode="max", target=0.0) is found[1]


def test_targets_may_change_on_resume():
    before = case.sparsity(0.5, 0.7)
    before.decide(case.evaluation(1, 0.9, 0.8))
    after = case.sparsity(0.7, 0.8)
    after.load_state_dict(before.state_dict())
    tags = [d.tag for d in after.decide(case.evaluation(2, 0.85, 0.8))]
    assert tags == ["best_accuracy_at_sparsity_0.80"]
