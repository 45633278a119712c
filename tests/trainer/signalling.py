"""A plugin whose policy and network send this process a signal at a chosen moment, once."""

import os
from dataclasses import dataclass

from torch import nn

from peakpoint.checkpointing.events import RunEnd, StepEnd
from peakpoint.trainer.config.plugins import add_model, add_policy


@dataclass(kw_only=True)
class Network:
    name: str = "signalling"
    number: int = 0
    when: str = "never"


@dataclass(kw_only=True)
class Settings:
    number: int = 0
    when: str = "never"
    again: int = 0
    step: int = 11


class Linear(nn.Module):
    def __init__(self, cfg, pixels, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
        self.cfg, self.sent = cfg, False

    def forward(self, images):
        if self.cfg.when == "evaluation" and not self.training and not self.sent:
            self.sent = True
            os.kill(os.getpid(), self.cfg.number)
        return self.layers(images)


def build(cfg, image_shape, num_classes):
    if cfg.when == "building":
        os.kill(os.getpid(), cfg.number)
    if cfg.when in ("swallowed", "replaced"):  # as libraries do
        try:
            os.kill(os.getpid(), cfg.number)
        except KeyboardInterrupt:
            if cfg.when == "replaced":
                raise ValueError("something else") from None
    return Linear(cfg, image_shape[0] * image_shape[1] * image_shape[2], num_classes)


class Signals:
    tags = ()

    def __init__(self, settings):
        self.settings, self.sent = settings, False

    def decide(self, event):
        at_step = (
            isinstance(event, StepEnd) and event.step == self.settings.step and self.settings.when == "step"
        )
        if at_step or (isinstance(event, RunEnd) and self.settings.when == "test"):
            self.send()
        return []

    def keeps(self, manifests):
        if self.settings.when == "save" and len(manifests) > 1 and not self.sent:
            self.sent = True
            self.send()
        return {}

    def send(self):
        for number in filter(None, (self.settings.number, self.settings.again)):
            os.kill(os.getpid(), number)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


add_model("signalling", Network(), build)
add_policy("signalling", Settings(), Signals)
