"""The store that the tests of what is on disk write to."""

import pytest

from peakpoint.checkpointing.storage.store import Store


@pytest.fixture
def target(tmp_path):
    return Store(tmp_path / "checkpoints", "run")
