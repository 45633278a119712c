"""A run with a mirror in memory, and one with a mirror on S3."""

import uuid

import pytest

from peakpoint.checkpointing.remote import background
from tests.checkpointing.remote.mirror_cases import World


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(background, "FIRST_PAUSE_S", 0.05)


@pytest.fixture
def far(tmp_path):
    return World(tmp_path / "run", f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def away(tmp_path, s3):
    return World(tmp_path / "run", f"{s3.url}/runs")
