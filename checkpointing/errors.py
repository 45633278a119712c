"""What can go wrong with checkpoints: each message is one line that says what and what to do."""


class CheckpointError(Exception):
    """A checkpoint, or the place for checkpoints, is not as it must be."""


class BusyError(CheckpointError):
    """Another process, alive, writes to the same directory."""


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


class FormatError(CheckpointError):
    """A sound manifest of a format that this version does not read: nothing is wrong with the file."""
