"""A plugin: a criterion with a setting, that draws its scores."""

from dataclasses import dataclass

import torch

from peakpoint import register
from peakpoint.optimizers.pruning.criterion import Criterion


@register("criterion", "noise")
@dataclass(frozen=True)
class Noise(Criterion):
    power: float = 1.0

    def score(self, context):
        return torch.rand(context.shape, generator=context.generator()) ** self.power
