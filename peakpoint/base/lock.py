"""One writer per directory, by a lock of the operating system that ends with its process.

The lock is on the open file, not on its name, so the file of a dead holder locks nobody out.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peakpoint.base.bounded import json_value, refuse_links
from peakpoint.base.errors import BusyError, CheckpointError, os_reason

log = logging.getLogger("peakpoint")
LOCK = ".lock"


@dataclass
class _Held:
    """A directory whose lock this process holds: its path when locked, its identity, and its present path."""

    named: Path
    identity: tuple[int, int]
    place: Path


_held: dict[int, _Held] = {}
"""Locks held, by the descriptor of the open lock file."""


def _forget() -> None:
    """Close the locks in a forked child: a worker that outlives its parent must not keep them."""
    while _held:
        os.close(_held.popitem()[0])


os.register_at_fork(after_in_child=_forget)


def try_lock(descriptor: int) -> bool | None:
    """Lock a file while it is open; return False when another process holds it, None where locks fail."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return None
    return True


@contextlib.contextmanager
def briefly(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a directory, after waiting for others to release it; `shared` among readers."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_writer(directory: Path) -> Iterator[None]:
    """Lock an existing directory for one writer; afterwards its lock file is as before, or gone.

    Raises BusyError, which names the process and host of another holder, and CheckpointError when the
    directory cannot be written to, or a link in it leads out of it. The lock of a dead holder is free.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100, resolve() would follow a link
    refuse_links(directory)
    path = directory / LOCK
    try:
        descriptor, created, got = _locked(path)
        held = _Held(directory, _identity(directory), directory)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written to: {os_reason(error)}.") from None
    if got is False:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise BusyError(f"{directory} is being written by {holder}: wait for it, or end it.")
    if got is None:
        log.warning("%s is on a file system without locks: a second writer goes unnoticed.", directory)
    _held[descriptor] = held
    try:
        before, times = os.pread(descriptor, 4096, 0), os.fstat(descriptor)
        _write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        try:
            yield
        finally:
            if _held.get(descriptor) is held:  # not in a forked child, which may hold another by this number
                with contextlib.suppress(OSError):
                    if created:
                        present(path).unlink()
                    else:
                        _write(descriptor, before)
                        os.utime(descriptor, ns=(times.st_atime_ns, times.st_mtime_ns))
    finally:
        if _held.get(descriptor) is held:
            del _held[descriptor]
            os.close(descriptor)


@contextlib.contextmanager
def alone(*directories: Path) -> Iterator[bool]:
    """Yield whether this process is the only writer to directories, by locks held or taken at once."""
    with contextlib.ExitStack() as stack:
        yield all(_holds(each) or _takes(stack, each) for each in dict.fromkeys(directories))


def _holds(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        identity = _identity(directory)
        return any(held.identity == identity for held in _held.values())
    return False


def _identity(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino


def present(path: Path, *, or_named: bool = False) -> Path:
    """Return the present path of a file below a locked directory that may have been moved.

    Raises FileNotFoundError when that directory was removed, or moved to another file system; with `or_named`
    it returns the path as it is, for its opener to fail on.
    """
    absolute = Path(os.path.abspath(path))  # noqa: PTH100, as it was named
    for descriptor, held in tuple(_held.items()):
        if absolute.is_relative_to(held.named):
            try:
                place = _followed(descriptor, held)
            except FileNotFoundError:
                if or_named:
                    return path
                raise
            return path if place == held.named else place / absolute.relative_to(held.named)
    return path


def _followed(descriptor: int, held: _Held) -> Path:
    with contextlib.suppress(OSError):
        if _identity(held.place) == held.identity:
            return held.place
    # Linux knows the present name of an open file.
    with contextlib.suppress(OSError):
        found = Path(f"/proc/self/fd/{descriptor}").readlink().parent
        if _identity(found) == held.identity:
            before, held.place = held.place, found  # first: the warning is logged to a file there
            log.warning("%s was moved to %s: the run continues there.", before, found)
            return found
    raise FileNotFoundError(errno.ENOENT, "removed, or moved to another file system", held.place)


def _takes(stack: contextlib.ExitStack, directory: Path) -> bool:
    with contextlib.suppress(CheckpointError):
        stack.enter_context(one_writer(directory))
        return True
    return False


def _locked(path: Path) -> tuple[int, bool, bool | None]:
    """Return an open lock file, whether it is new, and the result of `take`. Raises OSError."""
    while True:
        created = not os.path.lexists(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        got = try_lock(descriptor)
        # The previous holder removes its file: a lock on a removed file keeps nobody out.
        with contextlib.suppress(FileNotFoundError):
            if got is False or os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor, created, got
        os.close(descriptor)


def _write(descriptor: int, text: bytes) -> None:
    """Write the holder of the lock, for messages; a full disk does not prevent the lock."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)


def _holder(descriptor: int) -> str:
    try:
        found = json_value(os.pread(descriptor, 4096, 0))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
