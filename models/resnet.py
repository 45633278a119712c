"""Residual networks (He et al. 2015, arXiv:1512.03385): 18 and 50 from torchvision's blocks, and 20."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peakpoint.models._torchvision import torchvision

_CIFAR_SIDE = 64


def torchvision_resnet(
    block: str,
    layers: Sequence[int],
    image_shape: tuple[int, int, int],
    num_classes: int,
    stem: str,
    dropout: float,
) -> nn.Module:
    """Return torchvision's network of `layers` blocks a stage, with first layers for these images.

    `block` is BasicBlock or Bottleneck, `stem` cifar, imagenet or auto. The dropout follows the pooling,
    where it has no parameters and so leaves the names of the state alone.
    """
    models = torchvision().models
    net = models.ResNet(getattr(models.resnet, block), list(layers), num_classes=num_classes)
    channels, *sides = image_shape
    if stem == "cifar" or (stem == "auto" and max(sides) <= _CIFAR_SIDE):
        net.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    else:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    _init_conv(net.conv1)
    if dropout > 0:
        net.avgpool = nn.Sequential(net.avgpool, nn.Dropout(dropout))
    module: nn.Module = net
    return module


def _init_conv(module: nn.Module) -> None:
    """Draw normal weights with the variance that keeps the scale of gradients (He et al. 2015, fan-out)."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A: stride, then zero channels)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out + x)


class ResNet20(nn.Module):
    """The CIFAR network of He et al. 2015, section 4.2, with n = 3: 16, 32 and 64 channels."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(_Block(16, 16, 1), _Block(16, 16, 1), _Block(16, 16, 1))
        self.layer2 = nn.Sequential(_Block(16, 32, 2), _Block(32, 32, 1), _Block(32, 32, 1))
        self.layer3 = nn.Sequential(_Block(32, 64, 2), _Block(64, 64, 1), _Block(64, 64, 1))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(64, num_classes)
        self.apply(_init_conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes) of images (batch, channels, height, width)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        logits: Tensor = self.fc(self.dropout(x))
        return logits
