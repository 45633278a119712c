"""Whatever the moment of an interruption, a resumed policy decides what the uninterrupted one decides."""

import io
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peakpoint.checkpointing.events import EpochEnd, StepEnd
from tests.checkpointing.policies import policy_cases as case
from tests.checkpointing.policies.policy_cases import INF, NAN

SETTINGS = {
    "interval": case.interval(epochs=2, steps=3),
    "wall_clock": case.wall_clock(minutes=1e9),
    "best": case.best(accuracy="max", loss="min"),
    "best_min_delta": case.best(min_delta=0.05),
    "top_k": case.top_k(2),
    "top_k_min": case.top_k(3, "min", "loss"),
    "at_least": case.sparsity(0.5, 0.7, 0.975),
    "window": case.sparsity(0.5, 0.7, rule="window"),
    "settled": case.sparsity(0.5, 0.7, rule="window", settled=1),
    "early_stopping": case.early_stopping(patience=2, min_delta=0.05),
}

value = st.sampled_from([None, NAN, INF, -INF, 0.0, 0.1, 0.125, 0.3, 0.5, 0.9])
evaluation = st.tuples(
    value, value, st.sampled_from([0.0, 0.48, 0.495, 0.5, 0.515, 0.52, 0.7, 0.72, 0.98]), st.integers(0, 1)
)


def events(rows):
    """What a loop publishes: a step, an evaluation, the end of the epoch."""
    mask_version = 0
    for epoch, (accuracy, loss, sparsity, changed) in enumerate(rows, 1):
        mask_version += changed
        metrics = {} if loss is None else {"loss": loss}
        yield StepEnd(epoch, epoch * 10)
        yield case.evaluation(epoch, accuracy, sparsity, mask_version, **metrics)
        yield EpochEnd(epoch, epoch * 10)


def through_json(state):
    return json.loads(json.dumps(state, allow_nan=False))


def through_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(evaluation, min_size=1, max_size=8))
def test_the_same_later_decisions_from_every_point(name, rows):
    sequence = list(events(rows))
    policy = SETTINGS[name].build()
    decisions, states = [], [policy.state_dict()]
    for event in sequence:
        decisions.append(policy.decide(event))
        states.append(policy.state_dict())
    files = [
        case.manifest(n, d.tag, epoch=e.epoch, **e.metrics)
        for n, (e, ds) in enumerate(zip(sequence, decisions, strict=True))
        for d in ds
        if hasattr(d, "tag") and hasattr(e, "metrics")
    ]
    for point, state in enumerate(states):
        for passed in (through_json(state), through_torch(state)):
            resumed = SETTINGS[name].build()
            resumed.load_state_dict(passed)
            assert [resumed.decide(event) for event in sequence[point:]] == decisions[point:]
            assert resumed.state_dict() == states[-1]
            assert resumed.keeps(files) == policy.keeps(files)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_saved_state_does_not_change_afterwards(name):
    policy = SETTINGS[name].build()
    policy.decide(case.evaluation(1, 0.1, 0.5, loss=0.5))
    state = policy.state_dict()
    copy = json.dumps(state)
    resumed = SETTINGS[name].build()
    resumed.load_state_dict(state)
    for each in (policy, resumed):
        each.decide(case.evaluation(2, 0.9, 0.5, loss=0.1))
    assert json.dumps(state) == copy


@pytest.mark.parametrize("name", ["best", "top_k", "settled", "early_stopping"])
def test_a_missing_counter_is_an_error_that_names_it(name):
    full = SETTINGS[name].build().state_dict()
    for key in full:
        state = {k: v for k, v in full.items() if k != key}
        with pytest.raises(KeyError, match=key):
            SETTINGS[name].build().load_state_dict(state)
