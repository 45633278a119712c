"""Files that are whole or not there: staged beside their name, synced, renamed, and swept after a crash."""

import contextlib
import errno
import io
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peakpoint.base.digests import HASHERS, SAVED_WITH
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.base.lock import try_lock

CONF = Path(__file__).resolve().parents[1] / "conf"
"""The folder of the configuration, in a checkout and in an installed package alike."""

log = logging.getLogger("peakpoint")

STAGED_PREFIX = ".staged-"
"""Prefix of the names of unfinished files."""
CHUNK = 1 << 20
"""Bytes from which a piece is digested on another thread."""
BUFFER = 64 << 10
"""Bytes of the write buffer; larger pieces bypass it."""
BEHIND = 16 << 20
"""Bytes after which the kernel is asked to begin writing to disk."""

# Errors of file systems that cannot sync: CIFS, VirtualBox's shared folders, some on FUSE.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

# Errors of file systems without hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def staged_name(target: Path, end: str = "") -> Path:
    """Return a name beside `target` that no other process chooses, and that a sweep knows."""
    return target.with_name(f"{STAGED_PREFIX}{os.getpid()}-{secrets.token_hex(4)}{end}")


def abandoned(staged: Path) -> bool:
    """Return whether the writer of a staged file is dead; a living one holds a lock on it."""
    if staged.is_symlink():  # of a pointer: the next save sets it anew
        return True
    try:
        descriptor = os.open(staged, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return try_lock(descriptor) is True
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the unfinished files of dead writers from a folder."""
    with contextlib.suppress(OSError):
        for stray in folder.glob(f"{STAGED_PREFIX}*"):
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


class Staged(contextlib.AbstractContextManager["Staged"]):
    """A new file beside `target` that takes its name by `publish`, or is removed at the end of the block.

    It is locked while it is open, so that a sweep knows a living writer from a dead one. `size` counts the
    bytes passed to `write`; `digest` is theirs at the last `sync`, with the name of its algorithm.
    """

    def __init__(self, target: Path, end: str = "", algorithm: str = SAVED_WITH) -> None:
        self.path = staged_name(target, end)
        self.size = self._begun = 0
        self.digest = ""
        self._algorithm, self._hasher = algorithm, HASHERS[algorithm]()
        self._thread = ThreadPoolExecutor(1)
        self._target = target
        self._published = False
        # Not mkstemp: it makes files that only their owner can read.
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            error.filename = str(target)  # the name that the caller knows
            raise
        try_lock(descriptor)
        self._raw = os.fdopen(descriptor, "wb", buffering=0)
        self._file = io.BufferedWriter(self._raw, BUFFER)
        self.flush = self._file.flush

    def write(self, data: bytes | memoryview) -> int:
        """Write and digest all of `data`; returns its length in bytes.

        The kernel is asked to write back earlier bytes meanwhile, which shortens the sync at the end.
        """
        view = memoryview(data).cast("B")
        if len(view) < CHUNK:
            self._hasher.update(view)
            self._file.write(view)
        else:  # digested while the kernel copies it: neither needs the interpreter lock
            digesting = self._thread.submit(self._hasher.update, view)
            try:
                self._file.write(view)
            finally:
                digesting.result()
        self.size += len(view)
        if (behind := self.size - self._begun) >= BEHIND and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # a hint: the sync at the end raises the disk's errors
                # Linux begins to write back; pages that are not on disk yet stay in memory.
                os.posix_fadvise(self._raw.fileno(), self._begun, behind, os.POSIX_FADV_DONTNEED)
            self._begun = self.size
        return len(view)

    def sync(self) -> None:
        """Make what was written durable, and name its digest."""
        self._file.flush()
        fsync_file(self._raw.fileno(), self.path)
        self.digest = f"{self._algorithm}:{self._hasher.hexdigest()}"

    def publish(self, target: Path | None = None) -> None:
        """Take the target's name, or that of another in the same directory, in one step."""
        self.path.replace(target or self._target)
        self._published = True

    def create(self, target: Path | None = None) -> None:
        """Publish, but never over another file. Raises FileExistsError when something has the name."""
        target = target or self._target
        try:
            os.link(self.path, target)  # the staged name goes at the end of the block
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
            self.publish(target)

    def __exit__(self, _type: object, error: object, _trace: object) -> None:
        if isinstance(error, OSError) and error.filename is None:  # of a write: the kernel names no file
            error.filename = str(self._target)
        self._thread.shutdown()
        with contextlib.suppress(OSError):  # the bytes that count were synced
            self._file.close()
        if not self._published:
            with contextlib.suppress(OSError):
                self.path.unlink()


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
            "%s: this file system does not sync %s (%s): a power cut may lose what is saved here. Use a "
            "local disk where that matters.",
            folder,
            what,
            os_reason(error),
        )


@contextlib.contextmanager
def appending(path: Path) -> Iterator[int]:
    """Open a file to append to; yields its descriptor. Raises OSError, also for a link and a pipe."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    try:
        os.lseek(descriptor, 0, os.SEEK_END)  # fails for a pipe, whose reader may never come
        yield descriptor
    finally:
        os.close(descriptor)


def append(descriptor: int, record: bytes) -> None:
    """Append a record in one write. Raises OSError; a disk that is full may then hold a part of it."""
    rest = memoryview(record)
    while rest:  # after a part, the next write has the reason
        rest = rest[os.write(descriptor, rest) :]


def append_line(descriptor: int, text: str) -> None:
    """Append a line in one write, so that lines of several processes do not mix on a local disk.

    After a line that a crash cut short it begins a new one. Raises OSError.
    """
    size = os.fstat(descriptor).st_size
    start = "\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else ""
    append(descriptor, f"{start}{text}\n".encode())


def set_link(link: Path, name: str) -> None:
    """Make a symlink name a file beside it, in one step; skipped where symlinks do not work."""
    staged = staged_name(link)
    with contextlib.suppress(OSError):
        staged.symlink_to(name)
        staged.replace(link)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name: a hard link, or where links do not work a durable copy. Raises OSError."""
    try:
        target.hardlink_to(source)
    except OSError:
        with Staged(target) as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy, CHUNK)
            copy.sync()
            copy.publish()


def write_atomic(path: Path, text: str) -> None:
    """Replace a small text file so that a reader sees the old or the new one, and a crash neither half."""
    with Staged(path) as staged:
        staged.write(text.encode())
        staged.sync()
        staged.publish()
    fsync_directory(path.parent)
