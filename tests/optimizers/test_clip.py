import pytest
import torch

from peakpoint.optimizers.clip import clip_gradients
from tests.optimizers.optimizer_cases import pruned_run, train


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
