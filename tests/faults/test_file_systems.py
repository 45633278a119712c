"""File systems that refuse what others do: training continues where nothing is lost, and says why."""

import errno
import logging
import os
import resource
import shutil
import stat
from pathlib import Path

import pytest

from peakpoint.base import files
from peakpoint.base.errors import SaveFailed, os_reason
from peakpoint.checkpointing.storage import journal, locate
from peakpoint.checkpointing.storage.store import Store
from peakpoint.trainer.listeners.retrying_file import RetryingFile
from tests.checkpointing.checkpoint_cases import manifest
from tests.conftest import ROOT, TINY, process
from tests.faults.fault_cases import put, sound, tidy


@pytest.fixture(autouse=True)
def _nothing_reported_yet(monkeypatch):
    monkeypatch.setattr(files, "_unsynced", set())


@pytest.fixture
def warned(caplog):
    """The warnings so far."""
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def refusing(monkeypatch, number: int, *, directories: bool, regular: bool) -> None:
    """Have the operating system refuse fsync of directories, of files, or of both, as some of them do."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if directories if folder else regular:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_training_where_nothing_can_be_synced_is_reported_once_each_and_finishes(tmp_path):
    """The kernel's own answer, to every fsync."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    run, trace = tmp_path / "run", tmp_path / "trace"
    inject = ["strace", "-f", "-o", str(trace), "-e", "trace=fsync", "-e", "inject=fsync:error=EINVAL"]
    small = (*TINY, "epochs=1", "test=false", "checkpoint.interval_steps=4", f"hydra.run.dir={run}")
    done = process(ROOT / "train.py", *small, under=inject)
    if "ptrace" in done.stderr.lower():
        pytest.skip("strace may not trace here")
    assert "INJECTED" in trace.read_text()
    assert done.returncode == 0, done.stderr
    reported = [line for line in done.stdout.splitlines() if "does not sync" in line]
    assert [line.partition("does not sync ")[2].split()[0] for line in reported] == ["directories", "files"]
    assert all("(Invalid argument)" in line and "power cut" in line for line in reported)
    assert locate.newest_verified(run / "checkpoints").manifest.global_step == 8


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES", "EPERM"])
def test_a_directory_that_cannot_be_synced_is_reported_once(tmp_path, monkeypatch, warned, name):
    refusing(monkeypatch, getattr(errno, name), directories=True, regular=False)
    target = Store(tmp_path, "run")
    for value in range(1, 3):
        put(target, value)
    journal.record(tmp_path, "alias", {"alias": "champion", "version": "1.0.0"})
    assert sound(tmp_path) == [1, 2]
    assert tidy(tmp_path)
    (reported,) = warned()
    assert f"does not sync directories ({os.strerror(getattr(errno, name))}" in reported


def test_a_directory_that_may_not_be_listed_is_not_synced(tmp_path, monkeypatch, warned):
    """Root may list everything, so the answer that others get is put in."""
    real, hidden = os.open, tmp_path / "parent"

    def refused(path, flags, *rest, **more):
        if Path(path) == hidden:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *rest, **more)

    (hidden / "mine").mkdir(parents=True)
    monkeypatch.setattr(os, "open", refused)
    put(Store(hidden / "mine", "run"), 1)
    assert sound(hidden / "mine") == [1]
    assert len(warned()) == 1


@pytest.mark.parametrize("name", ["EIO", "ENOSPC", "EDQUOT", "ENOENT"])
@pytest.mark.parametrize("what", ["directories", "regular"])
def test_any_other_refusal_of_a_sync_is_a_save_that_failed(tmp_path, monkeypatch, what, name):
    target, number = Store(tmp_path, "run"), getattr(errno, name)
    put(target, 1)
    refusing(monkeypatch, number, directories=what == "directories", regular=what == "regular")
    with pytest.raises(SaveFailed) as refused:
        put(target, 2)
    assert refused.value.errno == number
    assert 1 in sound(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("EDQUOT", "Disk quota exceeded (the quota of this user or group is used up: delete files"),
        ("EROFS", "Read-only file system (nothing can be written there: choose another directory"),
        ("ESTALE", "(the server of this network file system no longer knows it"),
        ("EIO", "Input/output error (the disk or the network behind it fails"),
        ("ENOSPC", "No space left on device"),
    ],
)
def test_a_refusal_says_why_and_what_to_do_wherever_it_is_reported(
    tmp_path, monkeypatch, warned, name, words
):
    number = getattr(errno, name)

    def produce(_):
        raise OSError(number, os.strerror(number))

    target = Store(tmp_path, "run")
    with pytest.raises(SaveFailed) as refused:
        target.save([manifest("training/a.pt", run="run")], produce, expected=5000)
    assert words in str(refused.value)
    assert "it needs 5.0 kB" in str(refused.value)
    assert (" are free" in str(refused.value)) == (name != "EDQUOT")  # the rest is not for this user
    real = os.write
    waiting = RetryingFile(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(os, "write", lambda *_: produce(None))
    waiting.write(b"{}\n")
    monkeypatch.setattr(os, "write", real)
    assert words in warned()[-1]


def test_a_name_that_is_too_long_and_a_file_that_is_too_large(tmp_path):
    """The system's own answers."""
    target = Store(tmp_path, "run")
    with pytest.raises(SaveFailed, match=r"File name too long \(choose shorter names\)"):
        target.save([manifest(f"training/{'a' * 300}.pt", run="run")], lambda file: file.write(b"x"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(SaveFailed, match=r"File too large \(.*`ulimit -f`.*: raise the limit"):
            put(target, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tidy(tmp_path)


def test_a_reason_without_words_is_what_the_error_says():
    assert os_reason(OSError("nobody knows")) == "nobody knows"
