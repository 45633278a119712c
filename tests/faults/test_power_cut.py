"""A power cut, for real: a file system on a loop device loses everything that was not made durable."""

import array
import fcntl
import itertools
import os
import shutil
import subprocess
import sys

import pytest

from peakpoint.checkpointing.storage import listing, locate, store
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import manifest
from tests.conftest import ROOT
from tests.faults.fault_cases import Faulty, in_child, mounted, put, sound, tidy

SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
"""ioctl of ext4 and xfs: the file system ends at once, and its log is not written. include/uapi/linux/fs.h"""

DARK = 9

pytestmark = pytest.mark.root


@pytest.fixture(params=["ext4", "xfs"])
def image(request, tmp_path):
    """A file that holds an empty file system."""
    maker = shutil.which(f"mkfs.{request.param}", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if maker is None:
        pytest.skip(f"mkfs.{request.param} is not installed")
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(320 << 20)
    subprocess.run([maker, "-q", str(path)], check=True)
    with powered(path, tmp_path) as disk:
        Store(disk / "checkpoints", "run")
        subprocess.run(["sync", "-f", str(disk)], check=True)
    return path


def powered(image, tmp_path):
    return mounted(tmp_path / "disk", f"-o loop {image}")


def cut(disk):
    """From here on nothing reaches the disk."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, SHUTDOWN, array.array("i", [NO_LOG_FLUSH]))
    finally:
        os.close(descriptor)


def train(root, stated=lambda line: None):
    """Three saves, with their pointer and a milestone; the first is let go."""
    target = Store(root, "run")
    for value in (1, 2, 3):
        done = put(target, value)
        stated(f"{value}")
        target.set_pointer("training", "latest", done)
    target.share(done, manifest("milestone/best.pt", epoch=3))
    stated("milestone")
    store.verify(root, done)
    target.delete(listing.manifests(root)[0], "replaced")
    stated("deleted")


def test_a_save_that_returned_is_there_after_a_power_cut(image, tmp_path):
    with powered(image, tmp_path) as disk:
        train(disk / "checkpoints")
        cut(disk)
    with powered(image, tmp_path) as disk:
        root = disk / "checkpoints"
        assert {2, 3} <= set(sound(root)) <= {1, 2, 3}
        assert "milestone/best.pt" in [m.file for m in listing.manifests(root)]
        found = locate.newest_verified(root)
        assert (found.manifest.epoch, found.skipped) == (3, ())
        target = Store(root, "run")
        assert tidy(root)
        assert put(target, 4).sequence > found.manifest.sequence


def test_without_fsync_it_is_lost(image, tmp_path, monkeypatch):
    """Negative control: the same test sees a store that does not wait for the disk."""
    with powered(image, tmp_path) as disk:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            train(disk / "checkpoints")
        cut(disk)
    with powered(image, tmp_path) as disk:
        assert locate.newest_verified(disk / "checkpoints").manifest is None


SAVES = """
import sys
from pathlib import Path
from tests.faults.test_power_cut import train
train(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("eaten", [True, False], ids=["with eatmydata", "without"])
def test_under_eatmydata_the_same_saves_are_lost(image, tmp_path, eaten):
    """Negative control with the tool that swallows the program's syncs, and the same process without it."""
    eatmydata = shutil.which("eatmydata")
    if eaten and eatmydata is None:
        pytest.skip("eatmydata is not installed")
    for root in ("first", "second", "third"):  # the system writes by itself now and then, and saves the day
        with powered(image, tmp_path) as disk:
            subprocess.run(
                [*([eatmydata] if eaten else []), sys.executable, "-c", SAVES, str(disk / root)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                timeout=120,
                check=True,
            )
            assert sound(disk / root) == [2, 3, 3]
            cut(disk)
        with powered(image, tmp_path) as disk:
            found = locate.newest_verified(disk / root).manifest
        if found is None or not eaten:
            break
    assert found is None if eaten else found.epoch == 3


class Cutting(Faulty):
    """Cuts the power before the operation numbered `at`, and goes on in the dark."""

    def __init__(self, at, disk):
        super().__init__(at, "kill")
        self.disk = disk

    def strike(self, half=None):
        self.count += 1
        if self.count == self.at:
            if half:
                half()
            cut(self.disk)
            os._exit(DARK)


def test_a_power_cut_in_the_middle_loses_nothing_that_was_saved(image, tmp_path):
    copy = tmp_path / "copy"
    for at in itertools.count(1):
        subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)
        with powered(copy, tmp_path) as disk:
            code, stated = in_child(
                lambda say, disk=disk: train(disk / "checkpoints", say), Cutting(at, disk)
            )
        if code != DARK:
            break
        promised = {int(line) for line in stated if line.isdigit()}
        if "milestone" in stated:  # from here on the first one may go
            promised.discard(1)
        with powered(copy, tmp_path) as disk:
            root = disk / "checkpoints"
            found = locate.newest_verified(root)
            assert promised <= set(sound(root)) <= {1, 2, 3}, (at, stated)
            assert found.skipped == ()
            Store(root, "run")
            assert promised <= set(sound(root))
            assert tidy(root)
    assert code == 0
    assert at > 50
