"""The networks that can be trained, by name. Importing this package imports neither torch nor torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peakpoint.models.registry import (
    ModelRecord,
    available,
    check_size,
    create,
    reads_images,
    register,
    registered,
    unknown,
)

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ModelRecord",
    "available",
    "check_size",
    "create",
    "reads_images",
    "register",
    "registered",
    "unknown",
]


def _resnet50(*, image_shape: tuple[int, int, int], num_classes: int, stem: str, dropout: float) -> nn.Module:
    from peakpoint.models.resnet import resnet50

    return resnet50(image_shape=image_shape, num_classes=num_classes, stem=stem, dropout=dropout)


def _resnet18(*, image_shape: tuple[int, int, int], num_classes: int, stem: str, dropout: float) -> nn.Module:
    from peakpoint.models.resnet import resnet18

    return resnet18(image_shape=image_shape, num_classes=num_classes, stem=stem, dropout=dropout)


def _resnet20(*, image_shape: tuple[int, int, int], num_classes: int, stem: str, dropout: float) -> nn.Module:
    from peakpoint.models.resnet import resnet20

    return resnet20(image_shape=image_shape, num_classes=num_classes, stem=stem, dropout=dropout)


def _lenet5(*, image_shape: tuple[int, int, int], num_classes: int, dropout: float) -> nn.Module:
    from peakpoint.models.lenet import lenet5

    return lenet5(image_shape=image_shape, num_classes=num_classes, dropout=dropout)


register(ModelRecord("resnet50", "ResNet-50 (He et al. 2015), bottleneck blocks, 23.7 M at 100", _resnet50))
register(ModelRecord("resnet18", "ResNet-18 (He et al. 2015), basic blocks, 11.2 M parameters", _resnet18))
register(ModelRecord("resnet20", "ResNet-20 for CIFAR (He et al. 2015, section 4.2), 0.27 M", _resnet20))
register(
    ModelRecord(
        "lenet5", "LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, 0.06 M", _lenet5, smallest=12
    )
)
