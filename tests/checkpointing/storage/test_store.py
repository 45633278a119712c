"""What is on disk is whole, in order, and only ever replaced or removed by its own run."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from peakpoint.base import files
from peakpoint.base.digests import BLAKE3, digest_of
from peakpoint.base.errors import CheckpointError, SaveFailed
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing, locate, store
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import files_no_larger_than, manifest, saved


def test_a_saved_checkpoint_is_a_file_and_its_manifest(target):
    done = saved(target, value=3.0, metrics={"accuracy": 0.5})
    assert sorted(p.name for p in (target.root / "training").iterdir()) == ["a.json", "a.pt"]
    assert (done.bytes, done.sequence) == ((target.root / done.file).stat().st_size, 1)
    assert json.loads((target.root / "training" / "a.json").read_text())["digest"] == done.digest
    assert done.digest == digest_of(target.path(done), BLAKE3)
    store.verify(target.root, done)
    assert serialize.load(target.path(done))["model_state_dict"]["w"].tolist() == [3.0] * 8


def test_bytes_are_durable_before_their_name_and_the_manifest_comes_last(target, monkeypatch):
    """The real calls, written down in order."""
    calls = []
    fsync, rename = os.fsync, Path.replace

    def noting_fsync(descriptor):
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append(f"fsync {kind}")
        fsync(descriptor)

    def noting_rename(self, goal):
        calls.append(f"rename {Path(goal).name}")
        assert self.parent == Path(goal).parent  # across directories a rename could be a copy
        return rename(self, goal)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_rename)
    first = saved(target)
    written = ["fsync file", "fsync file", "rename a.pt", "rename a.json", "fsync directory"]
    assert calls == written
    calls.clear()
    target.share(first, manifest("milestone/b.pt"))
    assert calls == ["fsync file", "rename b.json", "fsync directory"]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_kill_at_any_rename_leaves_the_checkpoint_before_it(target, monkeypatch, at):
    """The process ends just before the rename of the bytes, of the manifest, or after both."""
    before = saved(target, "training/a.pt", 1.0)

    class Killed(BaseException):
        pass

    rename, seen = Path.replace, []

    def dying(self, goal):
        if len(seen) == at:
            raise Killed
        seen.append(goal)
        return rename(self, goal)

    monkeypatch.setattr(Path, "replace", dying)
    monkeypatch.setattr(Path, "unlink", lambda self, **_: None)  # the dead do not tidy up
    if at < 2:
        with pytest.raises(Killed):
            saved(target, "training/b.pt", 2.0)
    else:
        saved(target, "training/b.pt", 2.0)
    monkeypatch.undo()
    again = Store(target.root, "run")
    found = locate.newest_verified(target.root)
    assert found.skipped == ()
    assert found.manifest.file == ("training/b.pt" if at == 2 else before.file)
    assert list(target.root.rglob(f"{files.STAGED_PREFIX}*")) == []
    assert saved(again, again.free_name("training", "b"), 4.0).sequence == (3 if at == 2 else 2)


@pytest.mark.parametrize(("limit", "reason"), [(0, ""), (100, ""), (1500, ""), (2500, "x" * 9000)])
def test_a_file_that_cannot_grow_leaves_nothing_under_a_final_name(target, limit, reason):
    """Bytes or, in the last case, manifest: whichever is refused, the save has not happened."""
    before = saved(target, "training/a.pt")
    assert 1500 < target.path(before).stat().st_size < 2500
    with files_no_larger_than(limit), pytest.raises(SaveFailed, match="too large"):
        saved(target, "training/b.pt", reasons=(reason,))
    assert sorted(p.name for p in (target.root / "training").iterdir()) == ["a.json", "a.pt"]
    assert locate.newest_verified(target.root).manifest.file == before.file
    assert saved(target, "training/b.pt").sequence > before.sequence


def test_a_manifest_that_cannot_be_written_takes_the_shared_name_with_it(target):
    first = saved(target)
    with files_no_larger_than(10), pytest.raises(SaveFailed, match="too large"):
        target.share(first, manifest("milestone/b.pt"))
    assert list((target.root / "milestone").iterdir()) == []
    store.verify(target.root, first)


def test_a_full_disk(tmp_path):
    """A real one: a file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() != 0 or os.system(f"mount -t tmpfs -o size=1m tmpfs {disk} 2>/dev/null"):
        pytest.skip("needs to mount a file system")
    try:
        target = Store(disk / "checkpoints", "run")
        before = saved(target)
        (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - 4096))
        with pytest.raises(SaveFailed, match="No space left"):
            target.save([manifest("training/b.pt")], lambda f: f.write(bytes(1 << 20)))
        assert sorted(p.name for p in (target.root / "training").iterdir()) == ["a.json", "a.pt"]
        store.verify(target.root, before)
    finally:
        os.system(f"umount {disk}")


@pytest.mark.parametrize("where", ["root", "parent"])
def test_a_root_that_cannot_be_written_is_one_clear_line(tmp_path, where):
    (tmp_path / "file").write_text("in the way")
    root = tmp_path / "file" if where == "root" else tmp_path / "file" / "below"
    with pytest.raises(CheckpointError, match=r"Checkpoints cannot be .*choose another directory\.$"):
        Store(root, "run")


def test_roles_share_bytes_and_outlive_each_other(target):
    first = saved(target, value=5.0)
    role = target.share(first, manifest("milestone/b.pt", tags=("best",)))
    assert target.path(first).samefile(target.path(role))
    assert (role.digest, role.bytes, role.sequence) == (first.digest, first.bytes, 2)
    target.delete(first)
    store.verify(target.root, role)
    assert serialize.load(target.path(role))["model_state_dict"]["w"][0] == 5.0


def test_where_hard_links_do_not_work_a_role_is_a_copy(target, monkeypatch):
    def refused(self, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    first = saved(target)
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), sync(file)))
    role = target.share(first, manifest("milestone/b.pt"))
    assert not target.path(first).samefile(target.path(role))
    assert target.path(role).stat().st_ino in synced
    store.verify(target.root, role)


def test_files_have_the_permissions_that_the_umask_gives(target):
    before = os.umask(0o022)
    try:
        done = saved(target)
    finally:
        os.umask(before)
    for end in (".pt", ".json"):
        assert stat.S_IMODE(target.path(done).with_suffix(end).stat().st_mode) == 0o644


def test_only_files_of_this_run_are_deleted(target):
    mine = saved(target)
    other = saved(Store(target.root, "another run"), "training/b.pt")
    with pytest.raises(CheckpointError, match="belongs to run another run"):
        target.delete(other)
    store.verify(target.root, other)
    target.delete(mine)
    assert sorted(p.name for p in (target.root / "training").iterdir()) == ["b.json", "b.pt"]


@pytest.mark.parametrize("taken", ["a.pt", "a.json"])
def test_a_name_that_is_taken_gets_a_number(target, taken):
    assert target.free_name("training", "a") == "training/a.pt"
    (target.root / "training" / taken).touch()
    assert target.free_name("training", "a") == "training/a_2.pt"
    (target.root / "training" / "a_2.pt").touch()
    assert target.free_name("training", "a") == "training/a_3.pt"


def test_order_is_that_of_saving_whatever_the_clock_says(target):
    saved(target, "training/z.pt", created="2030-01-01T00:00:00.000+00:00")
    newest = saved(target, "training/a.pt", created="1999-01-01T00:00:00.000+00:00")
    os.utime(target.path(newest), (0, 0))
    assert [m.file for m in listing.manifests(target.root)] == ["training/z.pt", "training/a.pt"]
    assert locate.newest_verified(target.root).manifest.file == newest.file


@pytest.mark.parametrize("how", ["move", "copy"])
def test_a_moved_or_copied_directory_is_the_same(target, tmp_path, how):
    saved(target, "training/a.pt", 1.0)
    last = saved(target, "training/b.pt", 2.0)
    target.set_pointer("training", "latest", last)
    goal = tmp_path / "elsewhere" / "checkpoints"
    goal.parent.mkdir()
    if how == "move":
        shutil.move(target.root, goal)
    else:
        shutil.copytree(target.root, goal)  # follows symlinks: latest.pt is a file now
    assert locate.newest_verified(goal).manifest.file == last.file
    assert (goal / "training" / "latest.pt").resolve().read_bytes() == (goal / last.file).read_bytes()
    again = Store(goal, "run")
    assert saved(again, "training/c.pt").sequence == 3
    again.set_pointer("training", "latest", last)  # over the file that the copy has made of the link
    assert [m.file for m in listing.manifests(goal)] == ["training/a.pt", "training/b.pt", "training/c.pt"]


def test_a_pointer_is_relative_replaced_at_once_and_may_dangle(target):
    first, second = saved(target, "training/a.pt"), saved(target, "training/b.pt", 2.0)
    link = target.root / "training" / "latest.pt"
    target.set_pointer("training", "latest", first)
    target.set_pointer("training", "latest", second)
    assert str(link.readlink()) == "b.pt"
    target.delete(second)
    assert link.is_symlink()
    assert not link.exists()
    assert locate.newest_verified(target.root).manifest.file == first.file
    assert Store(target.root, "run").sequence == 1


def test_a_pointer_never_takes_the_place_of_a_checkpoint(target):
    """A policy may name its file as it names its role."""
    done = saved(target, "milestone/best.pt", 7.0)
    target.set_pointer("milestone", "best", done)
    store.verify(target.root, done)
    assert serialize.load(target.path(done))["model_state_dict"]["w"][0] == 7.0


def test_a_small_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "status.json"
    files.write_atomic(path, "old")
    with files_no_larger_than(2), pytest.raises(OSError, match="too large"):
        files.write_atomic(path, "newer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


LARGE = {"w": torch.arange(12_000_000, dtype=torch.float32)}  # 48 MB


def test_a_large_piece_is_digested_and_written_whole(target):
    done = target.save([manifest()], lambda file: serialize.dump(LARGE, file))[0]
    assert done.digest == digest_of(target.path(done), BLAKE3)
    assert torch.equal(serialize.load(target.path(done))["w"], LARGE["w"])


def test_a_large_piece_that_does_not_fit_is_a_failed_save(target):
    before = saved(target)
    with files_no_larger_than(20_000_000), pytest.raises(SaveFailed):
        target.save([manifest("training/b.pt")], lambda file: serialize.dump(LARGE, file))
    assert sorted(p.name for p in (target.root / "training").iterdir()) == ["a.json", "a.pt"]
    store.verify(target.root, before)
