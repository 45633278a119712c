"""A plugin whose network returns what no classifier does, or loses its running statistics."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from peakpoint.base.registry import register
from peakpoint.models import Model

OUTPUTS = {
    "more": lambda logits: torch.cat([logits, logits], 1),
    "fewer": lambda logits: logits[:, :-1],
    "maps": lambda logits: logits[:, :, None, None],
    "one": lambda logits: logits[:1],
    "whole": lambda logits: logits.long(),
    "tuple": lambda logits: (logits, logits),
    "nothing": lambda logits: None,
}


class Linear(nn.Module):
    def __init__(self, how, channels, pixels, classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * pixels, classes))
        self.how = how
        # What is no statistic may be infinite, as a mask of attention is.
        self.register_buffer("mask", torch.full((2, 2), -math.inf), persistent=False)

    def forward(self, images):
        logits = self.layers(self.norm(images))
        if self.how == "infinite" and self.training:
            self.norm.running_var = torch.full_like(self.norm.running_var, math.inf)
        return OUTPUTS[self.how](logits) if self.how in OUTPUTS else logits


@register("model", "outputs")
@dataclass(kw_only=True)
class Network(Model):
    how: str = "logits"

    def build(self, image_shape, num_classes):
        return Linear(self.how, image_shape[0], image_shape[1] * image_shape[2], num_classes)
