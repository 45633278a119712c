"""Files that are whole or not there: staged beside their name, synced, renamed, and swept after a crash."""

import contextlib
import errno
import hashlib
import io
import logging
import os
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from peakpoint.base.bounded import opened
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.base.lock import take

CONF = Path(__file__).resolve().parents[1] / "conf"
"""The folder of the configuration, in a checkout and in an installed package alike."""

log = logging.getLogger("peakpoint")

STAGED = ".staged-"
CHUNK = 1 << 20
LARGE = 1 << 18
BEHIND = 16 << 20

# What file systems answer that cannot sync: CIFS, VirtualBox's shared folders, some on FUSE.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

# What file systems without hard links answer.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def staged_name(target: Path, end: str = "") -> Path:
    """A name beside `target` that no other process chooses, and that a sweep knows."""
    return target.with_name(f"{STAGED}{os.getpid()}-{secrets.token_hex(4)}{end}")


def abandoned(staged: Path) -> bool:
    """Whether the writer of a staged file is dead. A writer that lives holds a lock on it."""
    if staged.is_symlink():  # of a pointer: the next save sets it anew
        return True
    try:
        descriptor = os.open(staged, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return take(descriptor) is True
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove what `write_atomic` left half-written in a folder when its process was killed."""
    with contextlib.suppress(OSError):
        for stray in folder.glob(f"{STAGED}*"):
            if abandoned(stray):
                stray.unlink(missing_ok=True)


def check_new(path: Path) -> None:
    """Raise CheckpointError unless a file of this name can be made, before anything is computed for it."""
    if os.path.lexists(path):
        raise CheckpointError(f"{path} exists: choose another name.")
    if not path.parent.is_dir():
        raise CheckpointError(f"{path.parent} is not a directory: make it first.")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Raise CheckpointError unless `path` is a folder that can be written to, or can be made."""
    there = next(each for each in (path.absolute(), *path.absolute().parents) if os.path.lexists(each))
    if not there.is_dir():
        raise CheckpointError(f"{there} is a file: name a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(f"{there} cannot be written to: choose another folder.")


class Staged:
    """A new file beside `target` that takes its name by `publish`, or vanishes at the end of the block.

    Locked while it is open, so that a sweep can tell a writer that lives from one that is dead.
    """

    def __init__(self, target: Path, end: str = "") -> None:
        self.path = staged_name(target, end)
        self._target = target
        self._published = False
        # Not mkstemp: it makes files that only their owner can read.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        take(descriptor)
        self._raw = os.fdopen(descriptor, "wb", buffering=0)
        self.file: BinaryIO = io.BufferedWriter(self._raw, CHUNK)

    def sync(self) -> None:
        """Make what was written durable."""
        self.file.flush()
        fsync_file(self._raw.fileno(), self.path)

    def publish(self, target: Path | None = None) -> None:
        """Take the target's name, or that of another in the same directory, in one step."""
        self.path.replace(target or self._target)
        self._published = True

    def create(self) -> None:
        """Take the target's name for good. Raises FileExistsError when something has it already."""
        try:
            os.link(self.path, self._target)  # the staged name goes at the end of the block
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self._target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self._target) from None
            self.publish()

    def __enter__(self) -> "Staged":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what mattered was synced
            self.file.close()
        if not self._published:
            with contextlib.suppress(OSError):
                self.path.unlink()


class HashingWriter(io.RawIOBase):
    """Passes writes on to a file and digests them on the way, so the bytes are read once.

    A second thread digests, on one core and without Python's lock, and the disk is told to begin with what
    lies behind, so that the sync at the end finds little left to do.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._digesting = ThreadPoolExecutor(1, "checkpoint-digest")
        self._digested: Future[None] | None = None
        self._passed = self._begun = 0
        self._small = bytearray()
        self._refused = False
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Write all of `data`; returns its length in bytes. It may change once this has returned."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        if len(view) < LARGE:
            self._small += view
            if len(self._small) >= CHUNK:
                self._pass_small()
        else:
            self._pass_small()
            try:
                self._pass(view)
            finally:
                self.settle()
        return len(view)

    def lend(self, data: bytes | memoryview) -> int:
        """As `write`, of memory that stays as it is until `settle`: the next need not wait for its digest."""
        view = memoryview(data).cast("B")
        self.size += len(view)
        self._pass_small()
        self._pass(view)
        return len(view)

    def settle(self) -> None:
        """Return once nothing that was lent is read any more."""
        if self._digested is not None:
            self._digested.result()

    def _pass_small(self) -> None:
        small, self._small = self._small, bytearray()
        if small:
            self._pass(memoryview(small))

    def _pass(self, view: memoryview) -> None:
        self._digested = self._digesting.submit(self._digest.update, view)  # one after another
        try:
            self._file.write(view)
        except OSError:
            self._refused = True
            raise
        self._passed += len(view)
        if self._passed - self._begun >= BEHIND:
            _begin_writing(self._file.fileno(), self._begun, self._passed - self._begun)
            self._begun = self._passed

    def hexdigest(self) -> str:
        """The sha256 of everything written; after `finish`."""
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Write what is left and end the thread. Raises OSError when the disk refuses."""
        try:
            if not self._refused:
                self._pass_small()
        finally:
            self._digesting.shutdown()


def _begin_writing(descriptor: int, start: int, size: int) -> None:
    """Have Linux begin to write a part of a file back; what is not on disk yet stays in memory too."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):  # a hint: the sync at the end tells what the disk refuses
            os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable; where the file system cannot do so, say it once."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError as error:  # one may write to a directory that one may not list
        _say_unsynced("directories", path, error)
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (*_NO_SYNC, errno.EBADF, errno.EACCES, errno.EPERM):
            raise
        _say_unsynced("directories", path, error)
    finally:
        os.close(descriptor)


def fsync_file(descriptor: int, path: Path) -> None:
    """Make the bytes of an open file durable; where the file system cannot do so, say it once."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        _say_unsynced("files", path.parent, error)


_unsynced: set[str] = set()


def _say_unsynced(what: str, folder: Path, error: OSError) -> None:
    """Warn of it once a process."""
    if what not in _unsynced:
        _unsynced.add(what)
        log.warning(
            "%s: this file system does not sync %s (%s): what is saved here survives the end of the program, "
            "and perhaps no power cut.",
            folder,
            what,
            os_reason(error),
        )


def point(link: Path, name: str) -> None:
    """Let a symlink name a file beside it, in one step; skipped where symlinks do not work."""
    staged = staged_name(link)
    with contextlib.suppress(OSError):
        staged.symlink_to(name)
        staged.replace(link)


def write_atomic(path: Path, text: str) -> None:
    """Replace a small text file so that a reader sees the old or the new one, and a crash neither half."""
    with Staged(path) as staged:
        staged.file.write(text.encode())
        staged.sync()
        staged.publish()
    fsync_directory(path.parent)


def file_digest(path: Path) -> str:
    """The sha256 of a regular file, read in chunks. Raises CheckpointError for what is none."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
