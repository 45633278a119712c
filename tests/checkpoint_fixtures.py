"""A run without training, releases, and what a user would read of it."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from peakpoint import CheckpointManager
from tests.checkpointing.api_cases import Training
from tests.checkpointing.checkpoint_cases import World
from tests.checkpointing.release_cases import VERSIONS, released
from tests.conftest import TINY, complete_run


@pytest.fixture
def world(tmp_path):
    """Makes a run with these policies' settings."""
    made = []

    def make(*, run="run", **settings):
        policies = {name: s.build() if hasattr(s, "build") else s for name, s in settings.items()}
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


@pytest.fixture(scope="session")
def four_releases(tmp_path_factory):
    """Four releases and no alias; not to be changed."""
    return released(tmp_path_factory.mktemp("releases") / "served", *VERSIONS)


@pytest.fixture
def served(four_releases, tmp_path):
    """A copy of them."""
    shutil.copytree(four_releases, tmp_path / "served", symlinks=True)
    return tmp_path / "served"


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def manager(root) -> CheckpointManager:
    return CheckpointManager(checkpoint_dir=root, max_training_checkpoints=3, save_optimizer=True)


@pytest.fixture
def t() -> Training:
    return Training()


def patterns(path: Path, count: int, seed: int, noise: float = 0.35) -> Path:
    """An .npz of `count` images of four patterns, 12 pixels a side, under noise."""
    drawn = np.random.default_rng(0).random((4, 12, 12))
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = np.clip(drawn[labels] + noise * rng.standard_normal((count, 12, 12)), 0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, images=(255 * images).astype(np.uint8), labels=labels)
    return path


@pytest.fixture(scope="session")
def measured_run(tmp_path_factory):
    """A finished run on arrays in a folder beside it, `data`; pruned to 0.6; not to be changed."""
    folder = tmp_path_factory.mktemp("measured")
    patterns(folder / "data" / "train.npz", 240, seed=1)
    patterns(folder / "data" / "test.npz", 80, seed=2)
    settings = [s for s in TINY if not s.startswith(("data", "model.dropout", "epochs", "checkpoint/"))]
    return complete_run(
        folder / "run",
        *settings,
        "data=npz",
        f"data.root={folder / 'data'}",
        "data.val_fraction=0.25",
        "data.crop_padding=0",
        "data.flip=false",
        "epochs=6",
        "pruning.target=0.6",
        "checkpoint.interval=2",
    )


@pytest.fixture
def measured_copy(measured_run, tmp_path):
    """A copy of it to break, with its own bytes under each name; its data lies where it was."""
    shutil.copytree(measured_run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"
