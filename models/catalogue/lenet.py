"""LeNet-5."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peakpoint.base.given import BELOW_ONE, require_range
from peakpoint.base.registry import register
from peakpoint.models.settings import Model

if TYPE_CHECKING:
    from torch import nn


@register("model", "lenet5")
@dataclass(kw_only=True)
class LeNet5(Model):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling; 0.06 M parameters."""

    smallest: ClassVar[int] = 12
    dropout: float

    def __post_init__(self) -> None:
        require_range(self, "model.", 0, BELOW_ONE, "dropout")

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
        """Return the network in float32 on the CPU, for images of (channels, height, width)."""
        from peakpoint.models import lenet

        return lenet.LeNet5(image_shape, num_classes, self.dropout)
