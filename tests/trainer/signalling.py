"""A plugin whose policy and network send this process a signal at a chosen moment, once."""

import os
from dataclasses import dataclass

from torch import nn

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import RunEnd, StepEnd
from peakpoint.checkpointing.policy import Policy
from peakpoint.models import Model


class Linear(nn.Module):
    def __init__(self, cfg, pixels, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
        self.cfg, self.sent = cfg, False

    def forward(self, images):
        evaluated = not self.training and not images.is_meta  # on meta its operations are counted
        if self.cfg.when == "evaluation" and evaluated and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.cfg.number)
        return self.layers(images)


@register("model", "signalling")
@dataclass(kw_only=True)
class Network(Model):
    number: int = 0
    when: str = "never"

    def build(self, image_shape, num_classes):
        if self.when == "building":
            os.kill(os.getpid(), self.number)
        if self.when in ("swallowed", "replaced"):  # as libraries do
            try:
                os.kill(os.getpid(), self.number)
            except KeyboardInterrupt:
                if self.when == "replaced":
                    raise ValueError("something else") from None
        return Linear(self, image_shape[0] * image_shape[1] * image_shape[2], num_classes)


@register("policy", "signalling")
@dataclass(kw_only=True)
class Signals(Policy):
    number: int = 0
    when: str = "never"
    again: int = 0
    step: int = 11

    def __post_init__(self):
        self.sent = False

    def decide(self, event):
        at_step = isinstance(event, StepEnd) and event.step == self.step and self.when == "step"
        if at_step or (isinstance(event, RunEnd) and self.when == "test"):
            self.send()
        return []

    def keeps(self, manifests):
        if self.when == "save" and len(manifests) > 1 and not self.sent:
            self.sent = True
            self.send()
        return {}

    def send(self):
        for number in filter(None, (self.number, self.again)):
            os.kill(os.getpid(), number)
