"""Remote places of a run and of a release."""

import uuid

import pytest

from peakpoint.checkpointing.remote import download
from peakpoint.deployment.release import release
from tests.checkpointing.publish_cases import small
from tests.commands.checkpoints.remote_cases import place


@pytest.fixture
def url():
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)


@pytest.fixture
def pushed(run, url, cli_main):
    """The remote place of a run whose two checkpoints, a.pt and b.pt, were pushed."""
    cli_main("push", run, url, "--what", "training")
    return place(url)


@pytest.fixture
def prod(url, tmp_path, cli_main):
    """A folder with a release that was pushed."""
    root = tmp_path / "prod"
    root.mkdir()
    release.write(root, small("1.0.0"))
    cli_main("push", root, url)
    return root
