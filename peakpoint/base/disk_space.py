"""Disk space and memory for a checkpoint: what it needs, what is free, and the errors when it is short."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peakpoint.base.errors import SaveFailed, os_reason

FILES_A_SAVE = 4
"""New names that a save in two roles takes."""


def free_room(path: Path) -> tuple[int | None, int | None]:
    """Return the bytes and files still free to this user, None where the file system does not say."""
    try:
        room = os.statvfs(path)
    except OSError:
        return None, None
    return room.f_bavail * room.f_frsize, room.f_favail if room.f_files else None


def in_words(size: int) -> str:
    """Return a number of bytes for people, such as 285.1 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} bytes"


def failure(root: Path, error: OSError, needed: int | None) -> SaveFailed:
    """Return the error for a save that the operating system refused: why, bytes needed and free."""
    free, files = free_room(root)
    sentence = f"A checkpoint could not be written to {root}: {os_reason(error)}"
    if error.errno == errno.EDQUOT:  # what others might still fill is no room for this user
        sentence += f"; it needs {in_words(needed)}" if needed else ""
    elif files is not None and files < FILES_A_SAVE:
        sentence += f"; it needs {FILES_A_SAVE} new files and {files} are left (inodes)"
    elif free is not None:
        what = f"it needs {in_words(needed)} and " if needed else ""
        sentence += f"; {what}{in_words(free)} are free"
    return SaveFailed(f"{sentence}.", needed=needed, free=free, errno=error.errno)


def shortage_of(root: Path, needed: int) -> str | None:
    """Return a warning when fewer than two checkpoints of `needed` bytes fit, else None."""
    free, files = free_room(root)
    if files is not None and files < 2 * FILES_A_SAVE:
        return f"Only {files} more files can be created in {root} (inodes): saves will fail soon."
    if free is not None and free < 2 * needed:
        return (
            f"Only {in_words(free)} are free in {root} and a checkpoint takes {in_words(needed)}: "
            "make room, or saves will fail soon."
        )
    return None


def tensor_bytes(state: Any) -> int:
    """Return the bytes of all tensors in a nested state; shared ones count as often as named."""
    if isinstance(state, Mapping):
        return sum(map(tensor_bytes, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(tensor_bytes, state))
    size = getattr(state, "nbytes", 0)
    return size if isinstance(size, int) else 0


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory was short; torch's is a plain RuntimeError on the CPU."""
    words = str(error).lower()
    return isinstance(error, MemoryError) or "allocate" in words or "out of memory" in words


def check_memory(error: Exception, needed: int) -> None:
    """Raise SaveFailed when `error` says that a copy of `needed` bytes did not fit in memory."""
    if is_out_of_memory(error):
        raise SaveFailed(
            f"A checkpoint could not be copied: it takes {in_words(needed)} of memory that is not there.",
            needed=needed,
            free=None,
            errno=None,
        ) from error
