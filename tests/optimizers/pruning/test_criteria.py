import pytest
import torch

from peakpoint.base import registry
from peakpoint.optimizers.pruning.criterion import Context
from tests.optimizers.optimizer_cases import settings


@pytest.mark.parametrize("schedule", ["cubic", "linear", "convex", "cosine"])
def test_schedule_is_zero_at_the_start_and_exactly_the_target_at_the_end(schedule):
    ramp = settings(schedule=schedule, target=0.9, start_step=100, end_step=1000)
    assert [ramp.sparsity_at(t) for t in (0, 100)] == [0.0, 0.0]
    assert [ramp.sparsity_at(t) for t in (1000, 5000)] == [0.9, 0.9]
    steps = [ramp.sparsity_at(t) for t in range(100, 1001)]
    assert steps == sorted(steps)


@pytest.mark.parametrize(
    ("schedule", "half"), [("cubic", 0.875), ("linear", 0.5), ("convex", 0.125), ("cosine", 0.5)]
)
def test_schedule_half_way(schedule, half):
    ramp = settings(schedule=schedule, target=0.8, start_step=100, end_step=300)
    assert ramp.sparsity_at(200) == pytest.approx(0.8 * half)


def test_updates_come_at_the_beat_and_at_the_end():
    ramp = settings(start_step=4, end_step=21, frequency=5)
    assert [t for t in range(40) if ramp.due(t, 0.7)] == [4, 9, 14, 19, 21]


def test_an_update_past_the_end_catches_up():
    ramp = settings(start_step=4, end_step=21, target=0.7)
    assert ramp.due(30, 0.69)
    assert not ramp.due(30, 0.7)


def test_a_ramp_of_no_length_prunes_at_once():
    assert settings(start_step=10, end_step=10).sparsity_at(10) == 0.7


def test_a_ramp_begins_at_the_sparsity_that_the_network_has():
    """s_t = s_f + (s_i - s_f)(1 - p)^3 (Zhu & Gupta 2017): no leap, and no step that prunes nothing."""
    ramp = settings(target=0.9, initial=0.5, begin=20, start_step=20, end_step=40)
    assert [ramp.sparsity_at(step) for step in (20, 40, 99)] == [0.5, 0.9, 0.9]
    assert ramp.sparsity_at(30) == pytest.approx(0.9 - 0.4 * 0.5**3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_step": 30}, "from step 30 to step 21 is not a ramp"),
        ({"start_step": -1}, "is not a ramp"),
        ({"begin": 3, "start_step": 2}, "the start must be at least 3"),
        ({"target": 0.5, "initial": 0.7}, "target 0.5 is below the sparsity of the network, 0.7"),
    ],
)
def test_a_ramp_goes_up_and_forward(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_scores_are_the_published_formulas():
    generator = torch.Generator().manual_seed(0)
    w, m, v = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    v = v.abs()
    state = {"exp_avg": m, "exp_avg_sq": v}
    expected = {
        "magnitude": w.abs(),
        "bitter0": w**2 * m.abs() / (v.sqrt() + 1e-8),
        "bitter7": w.abs() * (v + 1e-8) ** 0.25,
    }
    for name, score in expected.items():
        before = (w.clone(), m.clone(), v.clone())
        context = Context(name="layer.weight", weight=w, state=state, step=1, seed=0)
        found = registry.make("criterion", name, {}).score(context)
        torch.testing.assert_close(found, score)
        assert all(torch.equal(a, b) for a, b in zip((w, m, v), before, strict=True))
