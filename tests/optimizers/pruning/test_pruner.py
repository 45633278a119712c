import math
import random
from dataclasses import dataclass

import pytest
import torch

from peakpoint.base import registry
from peakpoint.base.registry import register
from peakpoint.optimizers.parameters import prunable_weights
from peakpoint.optimizers.pruning.criterion import Context, Criterion, ScoreError
from peakpoint.optimizers.pruning.lowest_k import select_keys, sort_keys
from peakpoint.optimizers.pruning.pruner import Pruner
from tests.optimizers.optimizer_cases import (
    OPTIMIZERS,
    built,
    gradients,
    network,
    pruned_run,
    settings,
    train,
    zeros,
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exactly_k_weights_are_zero_after_each_step_and_stay_so(name):
    """Momentum, weight decay and AMSGrad's maximum must not bring a pruned weight back."""
    net, optimizer, pruner = pruned_run(name)
    total = sum(weight.numel() for weight in pruner.params)
    gone = [torch.zeros_like(weight, dtype=torch.bool) for weight in pruner.params]
    expected, version = 0, 0
    for step in range(1, 61):
        train(net, optimizer, step, step)
        if step in (7, 12, 17, 21):
            expected = math.ceil(pruner.settings.sparsity_at(step) * total - 1e-9)
            version += 1
        assert zeros(pruner) == expected
        assert pruner.mask_version == version
        for weight, before in zip(pruner.params, gone, strict=True):
            assert (weight[before] == 0).all()
            before |= weight == 0
    assert pruner.sparsity == 0.7
    assert 0.7 <= zeros(pruner) / total < 0.7 + 1 / total
    for weight, kept in zip(pruner.params, pruner.masks, strict=True):
        assert torch.equal(kept, weight != 0)
        for value in optimizer.state[weight].values():
            assert value.ndim == 0 or (value[~kept] == 0).all()


def test_a_product_that_rounding_lifts_above_a_whole_number_prunes_no_weight_more():
    assert 0.55 * 100 > 55
    layer = torch.nn.Linear(10, 10, bias=False)
    optimizer = built("sgd", layer, 0.0)
    pruner = Pruner(optimizer, settings(target=0.55, start_step=1, end_step=1))
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    assert zeros(pruner) == 55


@pytest.mark.parametrize("criterion", ["magnitude", "bitter0", "bitter7"])
def test_the_lowest_scores_go(criterion):
    net, optimizer, pruner = pruned_run(criterion=criterion, target=0.3, start_step=5, end_step=5)
    dense_net = network()
    dense = built("adamw", dense_net)
    train(net, optimizer, 1, 5)
    train(dense_net, dense, 1, 5)
    score = registry.make("criterion", criterion, {}).score
    scores = [
        score(Context(name="", weight=weight.detach(), state=dense.state[weight], step=5, seed=0))
        for weight in dense.param_groups[0]["params"]
    ]
    lowest = select_keys(list(map(sort_keys, scores)), math.ceil(0.3 * sum(s.numel() for s in scores)))
    assert all(torch.equal(~a.flatten(), b) for a, b in zip(pruner.masks, lowest, strict=True))


@pytest.mark.parametrize("was_kept", [True, False])
def test_a_nan_among_the_scores_is_refused_unless_its_weight_is_pruned(was_kept):
    net, optimizer, pruner = pruned_run(target=0.5, start_step=1, end_step=3, frequency=1)
    train(net, optimizer, 1, 2)
    gradients(net, 3)
    with torch.no_grad():
        net[0].weight[tuple((pruner.masks[0] == was_kept).nonzero()[0])] = torch.nan
    if was_kept:
        with pytest.raises(
            ScoreError, match=r"^The criterion magnitude scores 1 weights of 0\.weight as NaN: "
        ):
            optimizer.step()
    else:
        optimizer.step()
        assert pruner.sparsity == 0.5


def test_a_pruned_weight_stays_pruned_when_others_score_lower():
    net, optimizer, pruner = pruned_run(target=0.5, start_step=4, end_step=24, frequency=10)
    train(net, optimizer, 1, 14)
    before = [mask.clone() for mask in pruner.masks]
    with torch.no_grad():
        net[0].weight.zero_()
    train(net, optimizer, 15, 24)
    assert pruner.mask_version == 2
    assert not any((now & ~then).any() for now, then in zip(pruner.masks, before, strict=True))


def test_masked_gradients_become_plus_zero_whatever_they_were():
    net, optimizer, pruner = pruned_run("sgd", start_step=1, end_step=1)
    train(net, optimizer, 1, 1)
    for value in (torch.nan, torch.inf, -1.0):
        for weight, kept in zip(pruner.params, pruner.masks, strict=True):
            weight.grad = torch.where(kept, 0.01, value)
        optimizer.step()
        for weight, kept in zip(pruner.params, pruner.masks, strict=True):
            assert (weight[~kept].view(torch.int32) == 0).all()
            assert torch.isfinite(weight).all()


def test_nothing_happens_before_the_first_pruning():
    net, optimizer, pruner = pruned_run(start_step=10)
    plain_net = network()
    plain = built("adamw", plain_net)
    train(net, optimizer, 1, 14)
    train(plain_net, plain, 1, 14)
    assert pruner.masks == []
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain_net.parameters(), strict=True))


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_the_gradient_scaler_skips_is_a_step_of_the_ramp(fused):
    """A fused optimizer's step() is called even then; without one the user calls advance()."""
    net, optimizer, pruner = pruned_run(target=0.5, start_step=0, end_step=4, frequency=1)
    optimizer._step_supports_amp_scaling = fused
    for group in optimizer.param_groups:
        group["fused"] = fused
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for step, bad in enumerate((True, False, False, True), 1):
        before = net[0].bias.detach().clone()
        net.zero_grad()
        scaler.scale(net(torch.ones(4, 3, 6, 6)).square().sum()).backward()
        if bad:
            net[0].bias.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if bad and not fused:
            pruner.advance()
        assert pruner.step == step
        assert torch.equal(before, net[0].bias) == bad
        assert pruner.sparsity == pruner.settings.sparsity_at(step)
    assert zeros(pruner) == math.ceil(0.5 * sum(weight.numel() for weight in pruner.params))
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_channels_last_prunes_the_same_weights(name):
    """Ties, of which there are many here, go by logical index in both layouts."""
    masks = []
    for channels_last in (False, True):
        _net, optimizer, pruner = pruned_run(name, channels_last, start_step=1, end_step=1, target=0.55)
        with torch.no_grad():
            for weight in pruner.params:
                weight.copy_((weight * 20).round())
                weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert all(m.stride() == w.stride() for m, w in zip(pruner.masks, pruner.params, strict=True))
        masks.append([mask.contiguous() for mask in pruner.masks])
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_a_weight_without_gradient_is_scored_too():
    net, optimizer, pruner = pruned_run(criterion="bitter7", start_step=1, end_step=1)
    gradients(net, 1)
    net[8].weight.grad = None
    optimizer.step()
    assert zeros(pruner) == math.ceil(0.7 * sum(weight.numel() for weight in pruner.params))


@pytest.mark.parametrize(
    ("optimizer", "criterion", "message"),
    [
        (
            torch.optim.SGD(network().parameters(), lr=0.1),
            "magnitude",
            "no parameter group carries prunable=True",
        ),
        (built("adamw", network(), eps=0.0), "magnitude", "eps above 0"),
    ],
)
def test_what_cannot_be_pruned(optimizer, criterion, message):
    with pytest.raises(ValueError, match=message):
        Pruner(optimizer, settings(criterion=criterion))


@pytest.mark.parametrize("changes", [{}, {"momentum": 0.0, "nesterov": False}], ids=str)
def test_an_optimizer_without_the_state_that_the_criterion_reads_is_refused_at_its_first_step(changes):
    net = network()
    optimizer = built("sgd", net, **changes)
    Pruner(optimizer, settings(criterion="bitter7", start_step=9))
    message = r"^The criterion bitter7 scores weights by exp_avg_sq, which SGD does not keep for 0\.weight: "
    with pytest.raises(ScoreError, match=message):
        train(net, optimizer, 1, 1)


def test_steps_that_were_skipped_before_the_first_prune_nothing_by_the_state_that_is_not_there():
    net, optimizer, pruner = pruned_run(criterion="bitter7", start_step=0, end_step=4, frequency=1)
    pruner.advance()
    pruner.advance()
    assert (zeros(pruner), pruner.mask_version) == (0, 0)
    train(net, optimizer, 3, 3)
    assert pruner.sparsity == pruner.settings.sparsity_at(3)


@pytest.mark.parametrize("seed", range(12))
def test_skipped_steps_never_cost_the_target(seed):
    """The ramp goes by the steps of the run, whichever of them are left out, to its very last one."""
    numbers = random.Random(seed)
    last = numbers.randint(3, 40)
    ramp = {
        "target": numbers.choice([0.31, 0.5, 0.9, 0.97]),
        "frequency": numbers.randint(1, 50),
        "start_step": numbers.randint(0, last),
        "end_step": last,
        "allocation": numbers.choice(["global", "uniform", "erk"]),
    }
    net, optimizer, pruner = pruned_run(numbers.choice(["sgd", "adamw"]), **ramp)
    left_out = {step for step in range(2, last + 1) if numbers.random() < 0.4}
    for step in range(1, last + 1):
        if step in left_out:
            pruner.advance()
        else:
            train(net, optimizer, step, step)
    assert zeros(pruner) == math.ceil(ramp["target"] * sum(w.numel() for w in pruner.params) - 1e-9), ramp
    assert pruner.sparsity == ramp["target"]


def test_a_closure_is_refused():
    _, optimizer, _ = pruned_run()
    with pytest.raises(ValueError, match="without a closure"):
        optimizer.step(lambda: 0.0)


@pytest.mark.usefixtures("own_components")
def test_a_criterion_of_ones_own_sees_the_gradient_the_name_and_the_shape():
    seen = []

    @register("criterion", "own_taylor")
    @dataclass(frozen=True)
    class Taylor(Criterion):
        def score(self, context):
            seen.append((context.name, context.shape))
            assert context.gradient.shape == context.shape == context.weight.shape
            return (context.weight * context.gradient).abs()

    net, optimizer, pruner = pruned_run("sgd", criterion="own_taylor", start_step=1, end_step=1)
    train(net, optimizer, 1, 1)
    assert seen == [(name, weight.shape) for name, weight in prunable_weights(net).items()]
    assert zeros(pruner) == math.ceil(0.7 * sum(weight.numel() for weight in pruner.params))


@pytest.mark.usefixtures("own_components")
@pytest.mark.parametrize(
    ("score", "found"),
    [
        (lambda c: c.weight.abs().sum(), r"float32 of shape \(\)"),
        (lambda c: c.weight > 0, r"bool of shape \(8, 3, 3, 3\)"),
        (lambda c: 0.5, "a float"),
        (lambda c: c.moment("momentum"), None),
    ],
)
def test_what_is_no_score_is_refused_with_the_name_of_the_weight(score, found):
    @register("criterion", "wrong")
    @dataclass(frozen=True)
    class Wrong(Criterion):
        def score(self, context):
            return score(context)

    net, optimizer, _ = pruned_run("sgd", criterion="wrong", start_step=1, end_step=1)
    message = rf"^The criterion wrong scores 0\.weight by {found}: .*, \(8, 3, 3, 3\)\.$"
    with pytest.raises(
        ScoreError, match=message if found else r"^The optimizer keeps no momentum for 0\.weight: "
    ):
        train(net, optimizer, 1, 1)


@pytest.mark.usefixtures("own_components")
def test_a_criterion_draws_its_numbers_by_seed_step_and_weight_and_has_its_settings():
    drawn = []

    @register("criterion", "drawn")
    @dataclass(frozen=True)
    class Noise(Criterion):
        power: float = 1.0

        def score(self, context):
            drawn.append((context.step, self.power, context.generator().initial_seed()))
            return torch.rand(context.shape, generator=context.generator()) ** self.power

    def run(seed):
        net = network()
        optimizer = built("sgd", net)
        chosen = settings(
            criterion="drawn", criterion_options={"power": 2}, start_step=0, end_step=2, frequency=1
        )
        pruner = Pruner(optimizer, chosen, seed)
        train(net, optimizer, 1, 2)
        return pruner.masks

    first, again, other = run(1), run(1), run(2)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))
    weights = len(first)
    assert {(step, power) for step, power, _ in drawn} == {(1, 2.0), (2, 2.0)}
    assert len({seed for *_, seed in drawn}) == 2 * 2 * weights
    with pytest.raises(ValueError, match=r"^The criterion drawn has no option pwer; its options: power\.$"):
        settings(criterion="drawn", criterion_options={"pwer": 2}).made("criterion")
