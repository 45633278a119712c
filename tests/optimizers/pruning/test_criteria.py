import numpy as np
import pytest
import torch

from peakpoint.base import registry
from peakpoint.optimizers.pruning.criterion import Context
from peakpoint.optimizers.pruning.pruner import Pruner
from tests.optimizers.optimizer_cases import (
    built,
    gradients,
    network,
    pruned_run,
    settings,
    through_a_file,
    train,
)


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


EPS = 1e-8
ORACLES = {
    "magnitude": ({}, lambda w, m, v, g: abs(w)),
    "bitter0": ({}, lambda w, m, v, g: w**2 * abs(m) / (np.sqrt(v) + EPS)),
    "bitter3": ({}, lambda w, m, v, g: abs(w) * np.sqrt(abs(m) + EPS)),
    "bitter7": ({}, lambda w, m, v, g: abs(w) * (v + EPS) ** 0.25),
    "power": ({"q": 0.4}, lambda w, m, v, g: abs(w) * (v + EPS) ** 0.4),
    "taylor": ({}, lambda w, m, v, g: abs(w * g)),
}


def context(weight, state, **more):
    return Context(name="layer.weight", weight=weight, state=state, step=21, seed=0, **more)


@pytest.mark.parametrize("name", ORACLES)
def test_scores_are_the_published_formulas_on_the_state_of_a_training(name):
    net = network()
    optimizer = built("adamw", net)
    train(net, optimizer, 1, 21)
    options, oracle = ORACLES[name]
    criterion = registry.make("criterion", name, options)
    for weight in optimizer.param_groups[0]["params"]:
        state = optimizer.state[weight]
        tensors = (weight, state["exp_avg"], state["exp_avg_sq"], weight.grad)
        values = [tensor.detach().double().numpy() for tensor in tensors]
        before = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            found = criterion.score(context(weight, state))
        np.testing.assert_allclose(found.numpy(), oracle(*values), rtol=2e-6)
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_power_orders_as_magnitude_and_as_bitter7_and_keeps_its_range():
    generator = torch.Generator().manual_seed(0)
    weight, v = torch.randn(2, 500, generator=generator)
    state = {"exp_avg_sq": v.abs()}
    for q, same in ((0.0, "magnitude"), (0.25, "bitter7")):
        power, other = (
            registry.make("criterion", name, options).score(context(weight, state))
            for name, options in (("power", {"q": q}), (same, {}))
        )
        assert torch.equal(power.argsort(), other.argsort())
    with pytest.raises(ValueError, match=r"q=-1.* is out of range"):
        registry.make("criterion", "power", {"q": -1.0})


def test_random_is_uniform_and_the_same_for_a_weight_and_a_step():
    criterion = registry.make("criterion", "random", {})
    weight = torch.zeros(100, 100)
    score = criterion.score(context(weight, {}))
    assert torch.equal(score, criterion.score(context(weight + 1, {})))
    np.testing.assert_allclose(np.quantile(score, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.02)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_movement_sums_minus_weight_times_gradient_over_all_steps(name):
    net, optimizer, pruner = pruned_run(name, criterion="movement", start_step=0, end_step=12, frequency=6)
    expected = [np.zeros(weight.shape) for weight in pruner.params]
    for step in range(1, 13):
        gradients(net, step)
        for index, weight in enumerate(pruner.params):
            kept = pruner.masks[index].numpy() if pruner.masks else 1
            expected[index] -= weight.detach().double().numpy() * weight.grad.double().numpy() * kept
        if step == 12:
            before = [mask.numpy() for mask in pruner.masks]
        optimizer.step()
        if step == 6:
            expected = [total * mask.numpy() for total, mask in zip(expected, pruner.masks, strict=True)]
    kept = np.concatenate([mask.numpy().ravel() for mask in pruner.masks])
    scores = np.concatenate([total.ravel() for total in expected])
    already = np.concatenate([~mask.ravel() for mask in before])
    lowest = np.argsort(np.where(already, -np.inf, scores), kind="stable")[: (~kept).sum()]
    assert not kept[lowest].any()


def test_the_sums_of_a_criterion_are_in_the_checkpoint():
    options = {"criterion": "movement", "start_step": 9, "end_step": 30}
    net, optimizer, pruner = pruned_run("sgd", **options)
    train(net, optimizer, 1, 7)
    weights, state = through_a_file([net.state_dict(), optimizer.state_dict()])
    train(net, optimizer, 8, 30)
    sums = optimizer.state_dict()["pruning"]["sums"]
    assert all((total[~mask] == 0).all() for total, mask in zip(sums, pruner.masks, strict=True))
    again = network()
    again.load_state_dict(weights)
    resumed = built("sgd", again)
    other = Pruner(resumed, settings(**options))
    resumed.load_state_dict(state)
    train(again, resumed, 8, 30)
    assert all(torch.equal(a, b) for a, b in zip(pruner.masks, other.masks, strict=True))


@pytest.mark.parametrize(
    "name", ["bitter1", "bitter2", "bitter4", "bitter5", "bitter6", "bitter8", "bitter9"]
)
def test_a_name_of_the_original_says_what_it_is(name):
    with pytest.raises(ValueError, match=rf"^There is no criterion named {name}\. Its? .*: use pruning\."):
        registry.find("criterion", name)
