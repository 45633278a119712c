"""One writer a directory, by the operating system's own lock: it falls with the process that held it.

The lock is on the open file, not on its name, so a file left behind by a dead holder locks nobody out.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from checkpointing.bounded import json_value
from checkpointing.errors import BusyError, CheckpointError, os_reason

log = logging.getLogger("peakpoint")
LOCK = ".lock"

_held: set[int] = set()


def _forget() -> None:
    """In a forked child: a worker that outlives its parent must not keep the parent's lock."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)


def take(descriptor: int) -> bool | None:
    """Lock an open file for as long as it stays open; False when another holds it, None where locks fail."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks
        return None
    return True


@contextlib.contextmanager
def briefly(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait until no other run gives out names in a directory, and keep others waiting within.

    `shared` is for who only looks: others who do so are not kept waiting.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def one_writer(directory: Path) -> Iterator[None]:
    """Be the only writer to a directory that exists; afterwards its lock file is as it was before, or gone.

    Raises BusyError, naming the holder's process and host, when there is one, and CheckpointError when the
    directory cannot be written to. The lock of a holder that died is free.
    """
    path = directory / LOCK
    try:
        descriptor, created, got = _locked(path)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written to: {os_reason(error)}.") from None
    _held.add(descriptor)
    try:
        if got is False:
            raise BusyError(f"{directory} is being written by {_holder(descriptor)}: wait for it, or end it.")
        if got is None:
            log.warning("%s is on a file system without locks: a second writer goes unnoticed.", directory)
        before, times = os.pread(descriptor, 4096, 0), os.fstat(descriptor)
        _write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        try:
            yield
        finally:
            if descriptor in _held:  # not in a forked child
                with contextlib.suppress(OSError):
                    if created:
                        path.unlink()
                    else:
                        _write(descriptor, before)
                        os.utime(descriptor, ns=(times.st_atime_ns, times.st_mtime_ns))
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _locked(path: Path) -> tuple[int, bool, bool | None]:
    """An open lock file, whether it is new, and what `take` said of it. Raises OSError."""
    while True:
        created = not os.path.lexists(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        got = take(descriptor)
        # The holder before removes its file: a lock on one that has no name any more keeps nobody out.
        with contextlib.suppress(FileNotFoundError):
            if got is False or os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor, created, got
        os.close(descriptor)


def _write(descriptor: int, text: bytes) -> None:
    """Who holds the lock, for people; a full disk does not keep anybody from holding it."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)


def _holder(descriptor: int) -> str:
    try:
        found = json_value(os.pread(descriptor, 4096, 0))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, TypeError, KeyError):
        return "another process"
