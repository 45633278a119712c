"""A plugin whose network returns what no classifier does, at all steps or some, or loses its statistics."""

import math
from dataclasses import dataclass, field

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
    def __init__(self, how, bad, channels, pixels, classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(channels * pixels, classes))
        self.how, self.bad = how, bad
        self.register_buffer("seen", torch.tensor(0))
        # What is no statistic may be infinite, as a mask of attention is.
        self.register_buffer("mask", torch.full((2, 2), -math.inf), persistent=False)

    def forward(self, images):
        logits = self.layers(self.norm(images))
        if self.how == "infinite" and self.training:
            self.norm.running_var = torch.full_like(self.norm.running_var, math.inf)
        self.seen += self.training
        if self.training and int(self.seen) in self.bad:
            return logits * math.nan
        return OUTPUTS[self.how](logits) if self.how in OUTPUTS else logits


@register("model", "outputs")
@dataclass(kw_only=True)
class Network(Model):
    how: str = "logits"
    bad: list[int] = field(default_factory=list)

    def build(self, image_shape, num_classes):
        return Linear(self.how, self.bad, image_shape[0], image_shape[1] * image_shape[2], num_classes)
