import pytest
import torch

from peakpoint.optimizers.kernels import keep_strides, quickest
from tests.optimizers.optimizer_cases import OPTIMIZERS, built, gradients, network, through_a_file, train


def test_fused_needs_floating_point_on_a_known_device():
    for others, fused in [
        ([], True),
        ([torch.zeros(2, device="meta")], False),
        ([torch.zeros(2, dtype=torch.int64)], False),
    ]:
        groups = [{"params": [torch.zeros(2)]}, {"params": others}]
        assert quickest(groups) == {"fused": fused, "foreach": not fused}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_fused_agrees_with_the_plain_kernel(name, channels_last):
    weights = []
    for fused in (True, False):
        net = network(channels_last=channels_last)
        optimizer = built(name, net)
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = fused
        train(net, optimizer, 1, 5)
        weights.append([p.detach().contiguous() for p in net.parameters()])
    for fused, plain in zip(*weights, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)


def test_gradients_have_the_strides_of_their_weights():
    net = network(channels_last=True)
    gradients(net, 1)
    for param in net.parameters():
        assert param.grad.stride() == param.stride()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_contiguous_state_continues_a_channels_last_model(name):
    """The state of a contiguous run is loaded into a channels_last one: moments must follow their weights."""
    net = network()
    optimizer = built(name, net)
    train(net, optimizer, 1, 5)
    other = network(1, channels_last=True)
    other.load_state_dict(net.state_dict())
    resumed = built(name, other)
    keep_strides(resumed)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    train(net, optimizer, 6, 8)
    train(other, resumed, 6, 8)
    for param in other.parameters():
        for value in resumed.state[param].values():
            assert value.ndim == 0 or value.stride() == param.stride()
    for expected, got in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
