"""A split of a data set, held whole."""

from dataclasses import dataclass

import torch
from torch import Tensor

from peakpoint.base.errors import UserError


@dataclass(frozen=True)
class Images:
    """A split held whole: images (N, H, W, C) uint8, labels (N,) int64 that index `classes`."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        count, labels = len(self.images), self.labels
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or not count:
            raise UserError(
                f"Images must be uint8 of shape (N, H, W, C) with N above 0, "
                f"not {self.images.dtype} of shape {tuple(self.images.shape)}."
            )
        if labels.dtype != torch.int64 or labels.shape != (count,):
            raise UserError(
                f"Labels must be int64 of shape ({count},), not {labels.dtype} of {tuple(labels.shape)}."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.classes):
            raise UserError(f"Labels run from {low} to {high}, but there are {len(self.classes)} classes.")
