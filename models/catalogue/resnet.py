"""ResNet-18, -20 and -50."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from peakpoint.base.given import BELOW_ONE, require_range
from peakpoint.base.registry import register
from peakpoint.models.settings import Model

if TYPE_CHECKING:
    from torch import nn


class Stem(Enum):
    """First layers of a ResNet: 3x3 for small images, 7x7 with pooling for large ones."""

    auto = "auto"
    cifar = "cifar"
    imagenet = "imagenet"


@dataclass(kw_only=True)
class ResNet(Model):
    """A residual network (He et al. 2015, arXiv:1512.03385) of torchvision's blocks."""

    block: ClassVar[str] = "BasicBlock"
    layers: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)
    stem: Stem
    dropout: float

    def __post_init__(self) -> None:
        require_range(self, "model.", 0, BELOW_ONE, "dropout")

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
        """Return the network in float32 on the CPU, for images of (channels, height, width)."""
        from peakpoint.models import resnet

        return resnet.torchvision_resnet(
            self.block, self.layers, image_shape, num_classes, self.stem.value, self.dropout
        )


@register("model", "resnet18")
@dataclass(kw_only=True)
class ResNet18(ResNet):
    """ResNet-18 of torchvision's basic blocks; 11.2 M parameters."""


@register("model", "resnet50")
@dataclass(kw_only=True)
class ResNet50(ResNet):
    """ResNet-50 of torchvision's bottleneck blocks; 23.7 M parameters at 100 classes."""

    block: ClassVar[str] = "Bottleneck"
    layers: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)


@register("model", "resnet20")
@dataclass(kw_only=True)
class ResNet20(ResNet):
    """ResNet-20, made for small images alone (section 4.2 of the paper); 0.27 M parameters."""

    def __post_init__(self) -> None:
        ResNet.__post_init__(self)
        if self.stem is Stem.imagenet:
            raise ValueError(
                "model.stem=imagenet: resnet20 has none for large images. "
                "Use auto or cifar, or a larger ResNet."
            )

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
        """Return the network in float32 on the CPU, for images of (channels, height, width)."""
        from peakpoint.models import resnet

        return resnet.ResNet20(image_shape[0], num_classes, self.dropout)
