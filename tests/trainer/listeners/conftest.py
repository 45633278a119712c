"""Runs that are ended at an event."""

import os
import signal
import sys

import pytest

from tests.conftest import ROOT, process

PLUGIN = """
import os
from dataclasses import dataclass

from peakpoint import register
from peakpoint.trainer.listeners.events import Logger


@register("logger", "ending")
@dataclass(kw_only=True)
class Ending(Logger):
    event: str = "EvalEnd"
    step: int = 0
    signal: int = 9

    def build(self, attempt):
        return Sends(self)


class Sends:
    def __init__(self, settings):
        self.settings = settings

    def __call__(self, event):
        if type(event).__name__ == self.settings.event and event.step == self.settings.step:
            os.kill(os.getpid(), self.settings.signal)

    def close(self):
        pass
"""
"""A logger that sends a signal once the loggers before it have an event."""


@pytest.fixture
def ended_at(tmp_path, monkeypatch, own_components):
    """The words with which a run gets a signal at an event of a step; `ending` is among its loggers."""
    (tmp_path / "ending.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ending", raising=False)  # of another test, whose logger is forgotten

    def words(event, step, number):
        given = {"event": event, "step": step, "signal": int(number)}
        return ("plugins=[ending]", *(f"logger.ending.{name}={value}" for name, value in given.items()))

    return words


@pytest.fixture
def killed_at(ended_at, tmp_path):
    """Train in a process of its own, which is killed at the evaluation of a step, before its checkpoint."""

    def train(step, *words):
        path = f"{ROOT}{os.pathsep}{tmp_path}"
        given = (*words, *ended_at("EvalEnd", step, signal.SIGKILL))
        done = process(ROOT / "train.py", *given, cwd=tmp_path, PYTHONPATH=path)
        assert done.returncode == -signal.SIGKILL, done.stderr

    return train
