"""A run without training, and what its user would be told."""

import logging
from pathlib import Path

import pytest

from checkpointing import CheckpointManager
from checkpointing.policies import build
from tests.checkpointing.api_cases import Training
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


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def manager(root) -> CheckpointManager:
    return CheckpointManager(checkpoint_dir=root, max_training_checkpoints=3, save_optimizer=True)


@pytest.fixture
def t() -> Training:
    return Training()
