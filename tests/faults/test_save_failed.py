"""What the operating system refuses is one typed error, with bytes needed and free; nothing is lost."""

import errno
import os
import shutil
import subprocess

import pytest

from peakpoint.base.errors import CheckpointError, SaveFailed
from peakpoint.checkpointing.storage import listing, locate
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import World, files_no_larger_than, manifest
from tests.checkpointing.policies import policy_cases as case
from tests.conftest import process
from tests.faults.fault_cases import mounted, payload, put, sound, tidy


def big(target, size, file="training/big.pt", expected=None):
    return target.save([manifest(file, run=target.run)], lambda f: f.write(bytes(size)), expected=expected)[0]


@pytest.mark.root
def test_a_full_disk_is_reported_with_what_is_needed_and_free(tmp_path):
    with mounted(tmp_path / "disk", "-t tmpfs -o size=1m tmpfs") as disk:
        target = Store(disk / "checkpoints", "run")
        put(target, 1)
        with pytest.raises(
            SaveFailed, match=r"No space left on device; it needs 2\.1 MB and 1\.0 MB are free"
        ) as no:
            big(target, 1 << 21, expected=1 << 21)
        assert (no.value.errno, no.value.needed) == (errno.ENOSPC, 1 << 21)
        assert 900_000 < no.value.free < 1 << 20
        assert "\n" not in str(no.value)
        assert sound(target.root) == [1]
        assert tidy(target.root)
        put(target, 2)
        assert sound(target.root) == [1, 2]


@pytest.mark.root
def test_a_disk_without_inodes_says_so(tmp_path):
    with mounted(tmp_path / "disk", "-t tmpfs -o size=4m,nr_inodes=30 tmpfs") as disk:
        target = Store(disk / "checkpoints", "run")
        put(target, 1)
        made = 0
        while os.statvfs(disk).f_favail > 1:
            (disk / f"small_{made}").touch()
            made += 1
        with pytest.raises(SaveFailed, match=r"it needs 4 new files and \d are left \(inodes\)") as no:
            put(target, 2)
        assert no.value.errno == errno.ENOSPC
        assert sound(target.root) == [1]
        assert tidy(target.root)


@pytest.mark.root
def test_a_disk_that_becomes_read_only(tmp_path):
    with mounted(tmp_path / "disk", "-t tmpfs -o size=4m tmpfs") as disk:
        target = Store(disk / "checkpoints", "run")
        first = put(target, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(SaveFailed, match="Read-only file system") as no:
            put(target, 2)
        assert no.value.errno == errno.EROFS
        with pytest.raises(SaveFailed, match="Read-only file system"):
            target.share(first, manifest("milestone/b.pt"))
        target.set_pointer("training", "latest", first)
        assert sound(target.root) == [1]
        with pytest.raises(CheckpointError, match=r"cannot be written to .*Read-only"):
            Store(target.root, "run")


@pytest.mark.root
def test_what_only_can_be_read_is_resumed_from_all_the_same(tmp_path):
    """A read-only bind mount, with a damaged newest that cannot be moved aside."""
    root = tmp_path / "checkpoints"
    target = Store(root, "run")
    put(target, 1)
    target.path(put(target, 2)).write_bytes(payload(3))
    with mounted(tmp_path / "view", f"--bind {root}") as view:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(view)], check=True)
        found = locate.newest_verified(view)
        assert found.manifest.epoch == 1
        assert [name for name, _ in found.skipped] == ["training/c0002.pt"]
    assert (root / "training" / "c0002.pt").exists()


@pytest.mark.root
@pytest.mark.parametrize("tier", ["training", "milestone"])
def test_a_tier_that_cannot_be_written_to_refuses_a_resume_before_it_trains(train, whole_run, tmp_path, tier):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run, symlinks=True)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with mounted(run / "checkpoints" / tier, f"--bind {run / 'checkpoints' / tier}") as folder:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        done = train(f"resume={run}", "epochs=4")
    assert done.code == 1
    assert f"Checkpoints cannot be written to {folder}: Read-only file system" in done.err
    assert done.err.count("\n") == 1
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("gone", ["training", "."])
def test_a_directory_that_was_removed_is_made_again_and_reported(tmp_path, caplog, gone):
    target = Store(tmp_path / "checkpoints", "run")
    put(target, 1)
    put(target, 2)
    shutil.rmtree(target.root / gone)
    put(target, 3)
    put(target, 4)
    assert sound(target.root) == [3, 4]
    assert [m.sequence for m in listing.manifests(target.root)] == [3, 4]
    assert caplog.messages == [f"{target.root / gone} was removed, with what was in it: it is made again."]
    assert tidy(target.root)


def test_a_disk_that_went_away_is_not_taken_for_a_directory_that_was_removed(tmp_path):
    """Nothing is written to the mount point, where the disk would hide it when it is back."""
    disk = tmp_path / "disk"
    (disk / "run").mkdir(parents=True)
    target = Store(disk / "run" / "checkpoints", "run")
    put(target, 1)
    (disk / "run").rename(tmp_path / "unmounted")
    with pytest.raises(SaveFailed, match="No such file or directory") as no:
        put(target, 2)
    assert no.value.errno == errno.ENOENT
    assert list(disk.iterdir()) == []
    (tmp_path / "unmounted").rename(disk / "run")
    put(target, 2)
    assert sound(target.root) == [1, 2]


@pytest.mark.parametrize("gone", ["training", "."])
def test_a_file_where_the_directory_was_is_not_replaced(tmp_path, gone):
    target = Store(tmp_path / "checkpoints", "run")
    shutil.rmtree(target.root / gone)
    (target.root / gone).write_text("of the user")
    with pytest.raises(SaveFailed, match=r"File exists|Not a directory"):
        put(target, 1)
    assert (target.root / gone).read_text() == "of the user"
    (target.root / gone).unlink()
    put(target, 2)
    assert sound(target.root) == [2]


def test_a_limit_on_the_size_of_files(tmp_path):
    target = Store(tmp_path, "run")
    put(target, 1)
    with files_no_larger_than(3000), pytest.raises(SaveFailed, match="File too large") as no:
        put(target, 2)
    assert no.value.errno == errno.EFBIG
    assert sound(tmp_path) == [1]
    assert tidy(tmp_path)


@pytest.fixture
def trained(tmp_path, caplog):
    """A run of the manager with one checkpoint."""
    run = World(tmp_path / "checkpoints", interval=case.interval(epochs=1, keep_last=9).build())
    run.epoch(0.5)
    run.manager.drain()
    yield run
    run.manager.close()


def test_little_room_is_reported_early_and_once(trained, caplog, monkeypatch):
    def room(free, files=10**6):
        real = os.statvfs(trained.root)
        values = list(real)
        values[4] = free // real.f_frsize  # f_bavail
        values[7] = files  # f_favail
        monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))

    warnings = lambda: [r.getMessage() for r in caplog.records]  # noqa: E731
    size = trained.kept[0].bytes
    room(100 * size + 10**5)
    trained.epoch(0.6)
    assert warnings() == []
    room(0)
    trained.epoch(0.6)
    trained.epoch(0.6)
    (warning,) = warnings()
    assert "Only 0 bytes are free" in warning
    assert "make room" in warning
    assert len(trained.kept) == 4  # a warning, no refusal
    room(10**9)
    trained.epoch(0.6)
    room(10**9, files=3)
    trained.epoch(0.6)
    assert len(warnings()) == 2
    assert "Only 3 more files can be created" in warnings()[1]


def test_a_run_that_begins_with_too_little_room_is_reported_before_the_first_save(
    tmp_path, caplog, monkeypatch
):
    from peakpoint.checkpointing.events import StepEnd

    run = World(tmp_path / "checkpoints", interval=case.interval(epochs=1, keep_last=9).build())
    values = list(os.statvfs(tmp_path))
    values[4] = 0
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(values))
    run.manager.handle(StepEnd(1, 1))
    assert "a checkpoint takes 256 bytes: make room" in caplog.text  # 64 weights of 4 bytes
    assert run.kept == []


MEMORY = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from peakpoint.base.errors import SaveFailed
from peakpoint.checkpointing.storage import store
from tests.checkpointing.checkpoint_cases import World
from tests.checkpointing.policies import policy_cases as case
run = World(Path(sys.argv[1]), interval=case.interval(epochs=1, keep_last=9).build())
run.attempt(on_error=sys.argv[2])
run.epoch(0.5)
run.weight = torch.ones(100_000_000)
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 28), now + (1 << 28)))
try:
    run.epoch(0.6)
except SaveFailed as error:
    print("stopped", error.needed, error.free, error.errno)
run.weight = torch.ones(64)
run.epoch(0.7)
run.manager.close()
print([m.epoch for m in run.kept])
"""


@pytest.mark.parametrize("on_error", ["warn", "stop"])
def test_memory_that_is_full(tmp_path, on_error):
    """The snapshot does not fit; the training that goes on is saved again when it does."""
    done = process("-c", MEMORY, tmp_path, on_error)
    assert done.returncode == 0, done.stderr
    stated = done.stdout.splitlines()
    assert stated[-1] == "[1, 3]"
    if on_error == "stop":
        assert stated[0] == "stopped 400000000 None None"
    else:
        assert "it takes 400.0 MB of memory that is not there. Training continues" in done.stderr


STRACED = """
import sys
from pathlib import Path
from peakpoint.base.errors import SaveFailed
from peakpoint.checkpointing.storage.store import Store
from tests.faults.fault_cases import put
target = Store(Path(sys.argv[1]), "run")
open(sys.argv[1] + "/go", "w").close()
try:
    put(target, 2)
except SaveFailed as error:
    print(error.errno, error)
"""


@pytest.mark.parametrize(
    ("call", "nth"), [("fsync", 1), ("fsync", 2), ("fsync", 3), ("rename", 1), ("rename", 2)]
)
def test_an_error_of_the_device_injected_by_strace(tmp_path, call, nth):
    """The kernel's own answer, below Python. Two fsyncs of the start come first."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    root = tmp_path / "checkpoints"
    put(Store(root, "run"), 1)
    when = nth + 2 if call == "fsync" else nth
    tracer = ["strace", "-f", "-o", str(tmp_path / "trace"), "-e", f"trace={call}"]
    inject = ["-e", f"inject={call}:error=EIO:when={when}"]
    done = process("-c", STRACED, root, under=[*tracer, *inject])
    if "ptrace" in done.stderr or "PTRACE" in done.stderr:
        pytest.skip("strace may not trace here")
    assert "INJECTED" in (tmp_path / "trace").read_text()
    assert done.stdout.startswith(f"{errno.EIO} A checkpoint could not be written to"), done.stderr
    assert 1 in sound(root)
    assert tidy(root)
    Store(root, "run")
    assert locate.newest_verified(root).skipped == ()
