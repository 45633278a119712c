"""A power cut while an alias is set or rolled back, for real, on ext4 and xfs."""

import itertools
import os
import shutil
import subprocess

import pytest

from peakpoint.checkpointing.storage import aliases
from peakpoint.deployment.release.rollback import roll_back
from tests.checkpointing.release_cases import history, released
from tests.faults.fault_cases import in_child
from tests.faults.test_power_cut import DARK, Cutting, cut, image, powered

__all__ = ["image"]  # the fixture

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return released(tmp_path_factory.mktemp("switch") / "served", "1.0.0", "1.1.0")


@pytest.fixture
def disk(template, image, tmp_path):
    """An image with two releases on it, of which 1.1.0 is the champion after 1.0.0."""
    with powered(image, tmp_path) as mounted:
        root = mounted / "served"
        shutil.copytree(template, root, symlinks=True)
        for version in ("1.0.0", "1.1.0"):
            aliases.assign(root, "champion", version, "")
        subprocess.run(["sync", "-f", str(mounted)], check=True)
    return image


def test_a_rollback_that_returned_holds_after_a_power_cut(disk, tmp_path):
    with powered(disk, tmp_path) as mounted:
        roll_back(mounted / "served")
        cut(mounted)
    with powered(disk, tmp_path) as mounted:
        assert history(mounted / "served") == ["1.0.0", "1.1.0", "1.0.0"]


def test_without_fsync_it_is_lost(disk, tmp_path, monkeypatch):
    """Negative control: the same test sees a switch that does not wait for the disk."""
    with powered(disk, tmp_path) as mounted:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            roll_back(mounted / "served")
        cut(mounted)
    with powered(disk, tmp_path) as mounted:
        assert history(mounted / "served") == ["1.0.0", "1.1.0"]


@pytest.mark.slow
def test_whatever_the_moment_it_is_the_old_or_the_new(disk, tmp_path):
    copy, found = tmp_path / "copy", set()
    for at in itertools.count(1):
        subprocess.run(["cp", "--sparse=always", str(disk), str(copy)], check=True)
        with powered(copy, tmp_path) as mounted:
            root = mounted / "served"
            code, _ = in_child(lambda say, root=root: roll_back(root) and None, Cutting(at, mounted))
        if code != DARK:
            break
        with powered(copy, tmp_path) as mounted:
            root = mounted / "served"
            found.add(tuple(history(root)))
            aliases.assign(root, "challenger_1", "1.1.0", "the next line")
            assert aliases.current(root)["challenger_1"] == "1.1.0"
    assert code == 0
    assert found == {("1.0.0", "1.1.0"), ("1.0.0", "1.1.0", "1.0.0")}
