import pytest
import torch

from peakpoint.models import create

torch.set_num_threads(1)


def build(shape, dropout=0.0):
    return create("lenet5", image_shape=shape, num_classes=10, options={"dropout": dropout})


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 12, 12), (2, 40, 24)])
def test_logits(shape):
    assert build(shape)(torch.randn(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("side", [28, 32])
def test_has_the_size_of_the_original(side):
    assert sum(p.numel() for p in build((1, side, side)).parameters()) == 61_706


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 11, 32)])
def test_too_small_an_image(shape):
    with pytest.raises(ValueError, match=rf"at least 12x12 pixels, and these are {shape[1]}x{shape[2]}"):
        build(shape)


def test_dropout_acts_in_training_only():
    net, x = build((1, 28, 28), dropout=0.5), torch.randn(4, 1, 28, 28)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
