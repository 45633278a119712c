"""Errors: each message is one line with its subject, the fact and the remedy."""

import contextlib
import errno
from collections.abc import Iterator

_REMEDIES = {
    errno.EDQUOT: "the quota of this user or group is used up: delete files, or ask for a larger quota",
    errno.EROFS: "nothing can be written there: choose another directory, or have it mounted for writing",
    errno.ESTALE: "the server of this network file system no longer knows it: have it mounted again",
    errno.EIO: "the disk or the network behind it fails: look into the system's log",
    errno.ENAMETOOLONG: "choose shorter names",
    errno.EFBIG: "larger than the file system or `ulimit -f` allows: raise the limit, or use another disk",
}


def os_reason(error: Exception) -> str:
    """Return why the operating system refused, in its words, with a remedy where it is not evident."""
    words = getattr(error, "strerror", None) or str(error)
    remedy = _REMEDIES.get(getattr(error, "errno", None) or 0)
    return f"{words} ({remedy})" if remedy else words


def first_line(error: Exception) -> str:
    """Return the first line of an exception's message, or the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class PeakpointError(Exception):
    """The one root of what Peakpoint raises when something outside its code is wrong."""


class UserError(PeakpointError):
    """Something outside the code is wrong: a value, a file, a directory, the data.

    The message is one line that says what was wrong and what to do. `train.py` prints it without a
    traceback and exits with a code other than 0; anything else that escapes is a bug and is shown whole.
    """


class CheckpointError(PeakpointError):
    """A checkpoint, or the place for checkpoints, is not as it must be."""


class BusyError(CheckpointError):
    """Another process, alive, writes to the same directory."""


class Gone(CheckpointError):  # noqa: N818 (the name says what happened)
    """The directory of the run was removed, or moved where it cannot be found, while the run writes to it."""


class SaveFailed(CheckpointError):  # noqa: N818 (the name says what happened)
    """A checkpoint could not be made durable; every older one is as it was.

    `needed` and `free` are bytes, each None where it is not known; `errno` is the operating system's number
    for the reason, None when memory ran out.
    """

    def __init__(self, sentence: str, *, needed: int | None, free: int | None, errno: int | None) -> None:
        super().__init__(sentence)
        self.needed = needed
        self.free = free
        self.errno = errno


class Undamaged(CheckpointError):  # noqa: N818 (the name says what follows)
    """A file that cannot be read here though nothing shows that it is damaged: it is never moved."""


class FormatError(Undamaged):
    """A sound manifest of a format that this version does not read: nothing is wrong with the file."""


class Denied(Undamaged):
    """The operating system does not let this process read a file, which says nothing of its bytes."""


class UnregisteredError(CheckpointError):
    """The code of a network is not here, not imported or not registered; nothing is wrong with its file."""


@contextlib.contextmanager
def restoring(part: str) -> Iterator[None]:
    """Name the part of a checkpoint that cannot be taken back. Raises CheckpointError, one line.

    Whoever takes it back expects the values that were saved; others, of any type, may stand in a file.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(
            f"The checkpoint's {part} cannot be restored ({why}): no training saved it so."
        ) from None
