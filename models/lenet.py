"""LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition")."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NATIVE = 32


class LeNet5(nn.Module):
    """Two convolutions and three dense layers, with ReLU and max pooling in place of 1998's.

    For images of (channels, height, width), of 12 pixels a side or more; those below the original 32 are
    padded by 2, as MNIST's 28 were.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, dropout: float) -> None:
        super().__init__()
        channels, height, width = image_shape
        padding = 2 if min(height, width) < _NATIVE else 0
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding)
        self.conv2 = nn.Conv2d(6, 16, 5)
        area = 1
        for side in (height, width):
            area *= ((side + 2 * padding - 4) // 2 - 4) // 2
        self.fc1 = nn.Linear(16 * area, 120)
        self.fc2 = nn.Linear(120, 84)
        self.dropout = nn.Dropout(dropout)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, classes) of images (batch, channels, height, width)."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        x = F.relu(self.fc2(x))
        logits: Tensor = self.fc3(self.dropout(x))
        return logits
