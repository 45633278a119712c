import pytest
import torch
from torch import nn

from peakpoint.models import create

torch.set_num_threads(1)


def build(name, shape=(3, 32, 32), classes=10, stem="auto", dropout=0.0):
    return create(name, image_shape=shape, num_classes=classes, options={"stem": stem, "dropout": dropout})


def parameters(net):
    return sum(p.numel() for p in net.parameters())


def test_resnet50_imagenet_stem_has_the_known_size():
    net = build("resnet50", classes=100, stem="imagenet")
    prunable = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(prunable) == 54
    assert sum(w.numel() for w in prunable) == 23_659_712
    assert parameters(net) == 23_712_932


@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_173_962), ("resnet20", 269_722)])
def test_parameter_counts_for_cifar10(name, count):
    assert parameters(build(name)) == count


@pytest.mark.parametrize(
    ("height", "width", "stem", "kernel"),
    [
        *[(32, 32, "auto", 3), (64, 64, "auto", 3), (65, 65, "auto", 7)],
        *[(32, 65, "auto", 7), (65, 32, "auto", 7), (32, 32, "imagenet", 7), (224, 224, "cifar", 3)],
    ],
)
def test_stem(height, width, stem, kernel):
    net = build("resnet18", shape=(3, height, width), stem=stem)
    assert net.conv1.kernel_size == (kernel, kernel)
    assert isinstance(net.maxpool, nn.Identity) == (kernel == 3)


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet50"])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)])
def test_logits_for_any_channels(name, shape):
    net = build(name, shape=shape, classes=7).eval()
    assert net(torch.randn(2, *shape)).shape == (2, 7)


def test_cifar_stem_keeps_the_resolution_until_the_second_stage():
    net = build("resnet18").eval()
    x = net.layer1(net.maxpool(net.conv1(torch.randn(1, 3, 32, 32))))
    assert x.shape == (1, 64, 32, 32)


def test_resnet20_has_no_imagenet_stem():
    with pytest.raises(ValueError, match="resnet20 has none for large images"):
        build("resnet20", stem="imagenet")


def test_unknown_stem():
    with pytest.raises(ValueError, match=r"'tiny', expected one of \[auto, cifar, imagenet\]"):
        build("resnet18", stem="tiny")


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_dropout_acts_in_training_and_leaves_the_names_alone(name):
    net = build(name, dropout=0.5)
    assert list(net.state_dict()) == list(build(name).state_dict())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_resnet20_shortcut_strides_and_pads_with_zeros():
    net = build("resnet20").eval()
    block = net.layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 16, 8, 8)
    out = block(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].eq(0).all()
    assert out[:, 24:].eq(0).all()


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_convolutions_start_with_fan_out_variance(name):
    torch.manual_seed(0)
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1500:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
