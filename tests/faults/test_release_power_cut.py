"""A power cut in the middle of a release, for real, on ext4 and xfs."""

import itertools
import os
import subprocess

import pytest

from peakpoint.deployment.release import release
from tests.checkpointing.publish_cases import SAFE, contents, journaled, small, sound
from tests.faults.fault_cases import in_child
from tests.faults.test_power_cut import DARK, Cutting, cut, image, powered

__all__ = ["image"]  # the fixture

pytestmark = pytest.mark.root

FIRST, SECOND = small("1.0.0"), small("1.1.0", seed=1, form=SAFE)


def test_a_release_that_returned_is_there_after_a_power_cut(image, tmp_path):
    with powered(image, tmp_path) as disk:
        release.write(disk / "checkpoints", FIRST)
        release.write(disk / "checkpoints", SECOND)
        cut(disk)
    with powered(image, tmp_path) as disk:
        root = disk / "checkpoints"
        assert sound(root, run=True) == journaled(root) == ["1.0.0", "1.1.0"]


def test_without_fsync_it_is_lost(image, tmp_path, monkeypatch):
    """Negative control: the same test sees a release that does not wait for the disk."""
    with powered(image, tmp_path) as disk:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            release.write(disk / "checkpoints", FIRST)
        cut(disk)
    with powered(image, tmp_path) as disk:
        assert sound(disk / "checkpoints") == []


@pytest.mark.slow
def test_a_release_that_the_power_ended_is_whole_or_not_there(image, tmp_path):
    copy = tmp_path / "copy"
    with powered(image, tmp_path) as disk:
        release.write(disk / "checkpoints", FIRST)
        before = contents(disk / "checkpoints")
        subprocess.run(["sync", "-f", str(disk)], check=True)
    found = set()
    for at in itertools.count(1):
        subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
        with powered(copy, tmp_path) as disk:
            root = disk / "checkpoints"
            code, _ = in_child(lambda say, root=root: release.write(root, SECOND), Cutting(at, disk))
        if code != DARK:
            break
        with powered(copy, tmp_path) as disk:
            root = disk / "checkpoints"
            versions = sound(root)
            found.add(tuple(versions))
            assert {name: contents(root)[name] for name in before} == before
            if versions == ["1.0.0"]:
                release.write(root, SECOND)
            assert sound(root) == ["1.0.0", "1.1.0"]
    assert code == 0
    assert at > 40
    assert found == {("1.0.0",), ("1.0.0", "1.1.0")}
