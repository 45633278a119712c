import math

import pytest
import torch

from peakpoint.optimizers.clipping import Spam, clip_gradients
from tests.optimizers.optimizer_cases import (
    ADAM,
    built,
    gradients,
    network,
    pruned_run,
    through_a_file,
    train,
)

SETTLE = 20


def spam(net, threshold=3.0, interval=30, warmup=8, amsgrad=False):
    optimizer = built("adamw", net, amsgrad=amsgrad)
    Spam(optimizer, threshold, interval, warmup)
    return optimizer


class Reference:
    """SPAM as the paper has it, one number at a time."""

    def __init__(self, net, threshold, interval, warmup):
        self.threshold, self.interval, self.warmup = threshold, interval, warmup
        self.decay = {n: 0.05 if p.ndim > 1 else 0.0 for n, p in net.named_parameters()}
        self.w = {n: p.detach().double().flatten().tolist() for n, p in net.named_parameters()}
        self.m = {n: [0.0] * len(w) for n, w in self.w.items()}
        self.v = {n: [0.0] * len(w) for n, w in self.w.items()}
        self.since, self.was_reset, self.clipped = 0, False, 0

    def step(self, net):
        beta1, beta2, lr = ADAM["beta1"], ADAM["beta2"], ADAM["lr"]
        if self.since == self.interval:
            self.since, self.was_reset = 0, True
            for name, w in self.w.items():
                self.m[name], self.v[name] = [0.0] * len(w), [0.0] * len(w)
        if self.was_reset and self.since + 1 < self.warmup:
            lr *= 0.5 * (1 - math.cos(math.pi * (self.since + 1) / self.warmup))
        t = self.since + 1
        for name, param in net.named_parameters():
            w, m, v = self.w[name], self.m[name], self.v[name]
            for i, g in enumerate(param.grad.double().flatten().tolist()):
                if self.since >= SETTLE and v[i] > 0 and g * g > self.threshold * v[i]:
                    g = math.copysign(math.sqrt(self.threshold * v[i]), g)
                    self.clipped += 1
                w[i] *= 1 - lr * self.decay[name]
                m[i] = beta1 * m[i] + (1 - beta1) * g
                v[i] = beta2 * v[i] + (1 - beta2) * g * g
                denominator = math.sqrt(v[i] / (1 - beta2**t)) + ADAM["eps"]
                w[i] -= lr * m[i] / (1 - beta1**t) / denominator
        self.since += 1


@pytest.mark.parametrize("fused", [True, False])
def test_agrees_with_the_paper(fused):
    net = network().double()
    optimizer = spam(net)
    for group in optimizer.param_groups:
        group["fused"] = fused
    reference = Reference(net, 3.0, 30, 8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(75):
        for param in net.parameters():
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        reference.step(net)
        optimizer.step()
    assert reference.clipped > 100
    for name, param in net.named_parameters():
        expected = torch.tensor(reference.w[name], dtype=torch.float64)
        torch.testing.assert_close(param.detach().flatten(), expected, rtol=1e-9, atol=1e-10)


def test_a_second_moment_of_zero_clips_nothing():
    net = network()
    optimizer = spam(net, interval=0)
    train(net, optimizer, 1, 25)
    weight = net[8].weight
    optimizer.state[weight]["exp_avg_sq"][0, 0] = 0
    gradients(net, 26)
    weight.grad[0, 0] = 7.0
    optimizer.step()
    assert weight.grad[0, 0] == 7.0


def test_a_reset_starts_the_moments_and_their_step_afresh():
    net = network()
    optimizer = spam(net, interval=10, amsgrad=True)
    train(net, optimizer, 1, 10)
    gradients(net, 11)
    optimizer.step()
    beta1, beta2 = ADAM["beta1"], ADAM["beta2"]
    for param in net.parameters():
        state = optimizer.state[param]
        assert state["step"] == 1
        torch.testing.assert_close(state["exp_avg"], (1 - beta1) * param.grad)
        torch.testing.assert_close(state["exp_avg_sq"], (1 - beta2) * param.grad**2)
        assert torch.equal(state["max_exp_avg_sq"], state["exp_avg_sq"])


def test_interval_zero_never_resets():
    net = network()
    optimizer = spam(net, interval=0)
    train(net, optimizer, 1, 50)
    assert optimizer.state[net[8].weight]["step"] == 50


def test_the_warm_up_never_accumulates_into_the_learning_rate():
    net = network()
    optimizer = spam(net, interval=10, warmup=8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(1, 101):
        assert optimizer.param_groups[0]["lr"] == ADAM["lr"] * (1 / step)
        train(net, optimizer, step, step)
        schedule.step()


@pytest.mark.parametrize("stop", [7, 25, 30, 33, 61])
def test_resume_is_exact_at_any_point_of_the_cycle(stop):
    net = network()
    optimizer = spam(net)
    train(net, optimizer, 1, stop)
    state = through_a_file(optimizer.state_dict())
    other = network(1)
    other.load_state_dict(net.state_dict())
    resumed = spam(other)
    resumed.load_state_dict(state)
    train(net, optimizer, stop + 1, stop + 40)
    train(other, resumed, stop + 1, stop + 40)
    for expected, got in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(expected, got)


def test_a_step_that_the_gradient_scaler_skips_is_not_counted():
    """The fused kernel leaves it out and the hooks run all the same."""
    net = network()
    optimizer = spam(net)
    optimizer._step_supports_amp_scaling = True
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for bad in (True, False, True, False):
        net.zero_grad()
        scaler.scale(net(torch.ones(4, 3, 6, 6)).square().sum()).backward()
        if bad:
            net[0].bias.grad[0] = torch.inf
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.state[net[0].bias]["step"] == 2
    assert optimizer.state_dict()["spam"]["step"] == 2


def test_a_state_of_plain_adamw_begins_the_counters():
    net = network()
    plain = built("adamw", net)
    train(net, plain, 1, 3)
    optimizer = spam(net)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.state_dict()["spam"] == {"step": 0, "reset_at": 0}
    first = optimizer.param_groups[0]["params"][0]
    assert optimizer.state[first]["step"] == 3


def test_a_large_gradient_is_scaled_and_a_small_one_left():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    clip_gradients(optimizer, 1.0)
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
    weight.grad = torch.tensor([0.3, 0.4])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.9, -1.2]))


def test_gradients_of_pruned_weights_do_not_count():
    net, optimizer, pruner = pruned_run("sgd", target=0.5)
    train(net, optimizer, 1, 30)
    clip_gradients(optimizer, 1e9)
    weight, kept = pruner.params[0], pruner.masks[0]
    for param in net.parameters():
        param.grad = None
    weight.grad = torch.where(kept, 1e-3, 1e12)
    optimizer.step()
    torch.testing.assert_close(weight.grad, torch.where(kept, 1e-3, 0.0))


def test_gradients_that_a_scaler_left_scaled_are_refused():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], fused=True)
    clip_gradients(optimizer, 1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(weight.sum()).backward()
    with pytest.raises(ValueError, match="unscale_"):
        scaler.step(optimizer)


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_the_norm_before_clipping_is_measured_where_it_is_wanted(max_norm):
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    norm = clip_gradients(optimizer, max_norm)
    for wanted in (True, False):
        norm.wanted = wanted
        weight.grad = torch.tensor([3.0, 4.0])
        optimizer.step()
        assert norm.take() == (5.0 if wanted else None)
