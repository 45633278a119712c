"""A run without training, and what its user would be told."""

import logging

import pytest

from checkpointing.policies import build
from tests.checkpointing.checkpoint_cases import World


@pytest.fixture
def world(tmp_path):
    """Makes a run with these policies' settings."""
    made = []

    def make(*, run="run", **settings):
        policies = {name: s if hasattr(s, "decide") else build(s) for name, s in settings.items()}
        made.append(World(tmp_path / "checkpoints", run=run, **policies))
        return made[-1]

    yield make
    for each in made:
        each.manager.close()


@pytest.fixture
def warnings(caplog):
    """The lines that the user would see."""
    caplog.set_level(logging.WARNING, "peakpoint")
    return lambda: [record.getMessage() for record in caplog.records]
