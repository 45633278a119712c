"""Files whose failed writes are retried: a full disk must not end the training."""

import logging
import os
from collections import deque
from pathlib import Path

from peakpoint.base.errors import os_reason
from peakpoint.base.files import append, appending
from peakpoint.base.lock import present
from peakpoint.base.terminal import escaped

log = logging.getLogger("peakpoint")

WAITING = 100_000
"""Records that wait at most; beyond it the oldest are dropped.

A row has about 200 bytes, so this is 20 MB of memory: at a row every 50 steps, five million steps.
"""


class RetryingFile:
    """Appends whole records; one that cannot be written waits in memory for the next try.

    Opened for each record, so that a file that was moved or deleted is made again. Warns once until a write
    succeeds. Never raises OSError. Records of a `held` file wait for `open`.
    """

    def __init__(self, path: Path, *, held: bool = False) -> None:
        self._path = path
        self._held = held
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._refused = False
        self._try()

    def open(self) -> None:
        """Begin to write, with the records that waited."""
        self._held = False
        self._try()

    def write(self, record: bytes) -> None:
        """Append a record, after those that wait."""
        if len(self._waiting) == WAITING:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(record)
        self._try()

    @property
    def missing(self) -> int:
        """Return the number of records that the file lacks."""
        return len(self._waiting) + self._lost

    def flush(self) -> None:
        """Try again to write what waits."""
        if self._waiting:
            self._try()

    def _try(self) -> None:
        if self._held:
            return
        waited = len(self._waiting)
        try:
            self._write()
        except OSError as error:
            if not self._refused:
                self._refused = True  # before the warning: this may be the file that it goes to
                log.warning(
                    "%s cannot be written: %s. What belongs there waits in memory; training continues.",
                    self._path,
                    os_reason(error),
                )
        else:
            if self._refused:
                self._refused = False
                lost = f", the oldest {self._lost} are lost" if self._lost else ""
                log.warning("%s is written again: %d records had waited%s.", self._path, waited, lost)

    def _write(self) -> None:
        with appending(present(self._path)) as descriptor:
            while self._waiting:
                size = os.fstat(descriptor).st_size
                try:
                    append(descriptor, self._waiting[0])
                except OSError:
                    os.ftruncate(descriptor, size)  # a record whole or not at all: only this process writes
                    raise
                self._waiting.popleft()

    def close(self) -> None:
        """Try once more; warns of records that could not be written."""
        self.flush()
        if self.missing:
            log.warning("%s lacks %d records: there was no room for them.", self._path, self.missing)


class RetryingHandler(logging.Handler):
    """Writes log lines to a file; logging.FileHandler prints a traceback for each line on a full disk.

    The lines wait until `open_logs`: the directory may turn out to be another run's.
    """

    def __init__(self, filename: str) -> None:
        super().__init__()
        self.file = RetryingFile(Path(filename).parent.resolve() / Path(filename).name, held=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        text = escaped(self.format(record), keep="\n\t")  # a traceback has lines
        self.file.write(f"{text}\n".encode())

    def flush(self) -> None:
        """Try again to write what waits."""
        self.file.flush()


def open_logs() -> None:
    """Open the log files that waited until the directory is the run's own."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RetryingHandler):
            handler.file.open()
