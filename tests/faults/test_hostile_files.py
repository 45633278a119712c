"""Files that somebody prepared: nothing unpacks without bound, runs code, or leads out of the folder."""

import io
import json
import os
import pickle
import zipfile

import pytest
import torch

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import archive, serialize
from peakpoint.checkpointing.storage import listing, locate, quarantine, store
from peakpoint.checkpointing.storage.manifest import sealed
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import manifest, saved
from tests.conftest import one_line, process

LIMIT = 1 << 30

OPEN = """
import resource, sys, torch
from pathlib import Path
from peakpoint.checkpointing.state import archive, serialize
from peakpoint.base.errors import CheckpointError
path, checked = Path(sys.argv[1]), sys.argv[2] == "checked"
def used():
    peak = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(peak[0].split()[1]) * 1024
serialize.load(path.with_name("small.pt"))
before = used()
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 29), now + (1 << 29)))
try:
    if checked:
        archive.check_archive(path, 1 << 30)
    serialize.load(path) if checked else torch.load(path, weights_only=True)
except CheckpointError as error:
    print(error)
print(used() - before)
"""


@pytest.fixture
def bomb(tmp_path):
    """A `.pt` whose tensor of zeros was deflated: small on disk, 200 MB in memory."""
    torch.save({"w": torch.zeros(4)}, tmp_path / "small.pt")
    plain = tmp_path / "plain.pt"
    torch.save({"w": torch.zeros(50_000_000)}, plain)
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    plain.unlink()
    assert path.stat().st_size < 1_000_000
    return path


def opened(path, how):
    done = process("-c", OPEN, path, how)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_decompression_bomb_is_refused_in_little_memory(bomb):
    refusal, used = opened(bomb, "checked")
    assert "would unpack to" in refusal
    assert int(used) < 20_000_000
    assert int(opened(bomb, "unchecked")[-1]) > 150_000_000  # negative control


def test_an_honest_checkpoint_passes_and_has_a_bound(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(10_000)}, path)
    archive.check_archive(path, LIMIT)
    with pytest.raises(CheckpointError, match="30000 are allowed: refused"):
        archive.check_archive(path, 30_000)


def overlapping(path):
    """Many entries that are one and the same run of bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(100_000))
        archive.filelist *= 100
    return path


def pickled(path):
    path.write_bytes(pickle.dumps({"w": 1}))
    return path


def cut(path):
    torch.save({"w": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (overlapping, "would unpack to"),
        (pickled, "not a checkpoint archive"),
        (cut, "not a checkpoint archive"),
    ],
)
def test_other_archives_are_refused(tmp_path, make, words):
    with one_line(CheckpointError, match=words):
        archive.check_archive(make(tmp_path / "a.pt"), LIMIT)


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        archive.check_archive(tmp_path / "a.pt", LIMIT)


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_bytes_that_do_not_verify_are_never_unpickled(tmp_path):
    """A file put in the place of another is found by its digest, and opened by hand it runs nothing."""
    target = Store(tmp_path / "c", "run")
    done = saved(target)
    mark = tmp_path / "ran"
    evil = io.BytesIO()
    torch.save({"w": Evil(mark)}, evil)
    target.path(done).write_bytes(evil.getvalue())
    with pytest.raises(CheckpointError):
        serialize.load(target.path(done))
    assert locate.newest_verified(target.root).manifest is None
    assert not mark.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(evil.getvalue()), weights_only=True)
    torch.load(io.BytesIO(evil.getvalue()), weights_only=False)  # negative control: it would have
    assert mark.exists()


@pytest.mark.parametrize("name", ["../../precious.pt", "/precious.pt", "training/../../../precious.pt"])
def test_no_name_in_a_manifest_leads_out_of_the_root(tmp_path, name):
    root = tmp_path / "a" / "checkpoints"
    target = Store(root, "run")
    saved(target)
    precious = tmp_path / "precious.pt"
    precious.write_text("of the user")
    mark = root / "training" / "a.json"
    mark.write_text(sealed(json.dumps(json.loads(mark.read_text()) | {"file": name, "tier": ".."})))
    (found,) = listing.manifests(root)
    store.verify(root, found)
    target.delete(found)
    Store(root, "run")
    quarantine.quarantine(root, found.file, "a test")
    assert precious.read_text() == "of the user"
    assert not (root / "training" / "a.pt").exists()


def test_pointers_that_dangle_or_loop_are_nothing(tmp_path):
    target = Store(tmp_path, "run")
    done = saved(target)
    for tier in ("training", "milestone"):
        (tmp_path / tier / "latest.pt").symlink_to("latest.pt")
        (tmp_path / tier / "best.pt").symlink_to("/nowhere/at/all.pt")
        (tmp_path / tier / "loop.json").symlink_to("loop.json")
    again = Store(tmp_path, "run")
    assert again.free_name("training", "latest").startswith("training/latest")
    assert locate.newest_verified(tmp_path, "run").manifest.file == done.file
    assert locate.newest_verified(tmp_path).manifest.file == done.file
    again.set_pointer("training", "latest", done)
    assert str((tmp_path / "training" / "latest.pt").readlink()) == "a.pt"
    assert again.share(done, manifest("milestone/b.pt")).sequence == 2
