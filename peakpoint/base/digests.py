"""Digests of files, each a text that names its algorithm: `blake3:` or `sha256:` and 64 hexadecimal digits.

BLAKE3 is several times as fast, so checkpoints have it; SHA-256 is what `sha256sum` checks, so releases do.
"""

import contextlib
import hashlib
import io
import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from blake3 import blake3

from peakpoint.base.bounded import opened
from peakpoint.base.files import CHUNK

BLAKE3, SHA256 = "blake3", "sha256"
ALL = blake3.AUTO
"""As many threads as there are cores."""
LARGE = 1 << 18
BEHIND = 16 << 20
PIECE = 4 << 20
"""Bytes that are read at a time: enough to share among threads."""

_DIGEST = re.compile(rf"({BLAKE3}|{SHA256}):[0-9a-f]{{64}}")


class Hasher(Protocol):
    """What hashlib and blake3 have in common."""

    @property
    def name(self) -> str:
        """The algorithm."""
        ...

    def update(self, data: bytes | memoryview, /) -> Any:
        """Digest more bytes."""
        ...

    def hexdigest(self) -> str:
        """The digest so far."""
        ...


def hasher(algorithm: str, threads: int = 1) -> Hasher:
    """An empty digest, with BLAKE3 on so many threads."""
    return hashlib.sha256() if algorithm == SHA256 else blake3(max_threads=threads)


def named(found: Hasher) -> str:
    """The digest with the name of its algorithm."""
    return f"{found.name}:{found.hexdigest()}"


def parsed(text: str) -> str:
    """A digest that was read; SHA-256 when it names no algorithm. Raises ValueError for what is none."""
    digest = text if ":" in text else f"{SHA256}:{text}"
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{text[:80]!r} is not a digest")
    return digest


def of_bytes(content: bytes, algorithm: str) -> str:
    """The digest of what is in memory."""
    found = hasher(algorithm)
    found.update(content)
    return named(found)


def algorithm_of(digest: str) -> str:
    """The algorithm that a digest names."""
    return digest.partition(":")[0]


def digest_of(path: Path, algorithm: str, threads: int = ALL) -> str:
    """The digest of a regular file, read in pieces. Raises CheckpointError for what is none, and OSError.

    Not by a map of the file: one that is cut short or cannot be read meanwhile would end the process.
    """
    found, piece = hasher(algorithm, threads), memoryview(bytearray(PIECE))
    with opened(path) as file:
        while size := file.raw.readinto(piece):
            found.update(piece[:size])
    return named(found)


def matches(path: Path, digest: str, threads: int = ALL) -> bool:
    """Whether a regular file has a digest. Raises as digest_of."""
    return digest_of(path, algorithm_of(digest), threads) == digest


class HashingWriter(io.RawIOBase):
    """Passes writes on to a file and digests them on the way, so the bytes are read once.

    A second thread digests, on one core and without Python's lock, and the disk is told to begin with what
    lies behind, so that the sync at the end finds little left to do.
    """

    def __init__(self, file: BinaryIO, algorithm: str = BLAKE3) -> None:
        self._file = file
        self._found = hasher(algorithm)
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
        self._digested = self._digesting.submit(self._found.update, view)  # one after another
        try:
            self._file.write(view)
        except OSError:
            self._refused = True
            raise
        self._passed += len(view)
        if self._passed - self._begun >= BEHIND:
            _begin_writing(self._file.fileno(), self._begun, self._passed - self._begun)
            self._begun = self._passed

    @property
    def digest(self) -> str:
        """That of everything written; after `finish`."""
        return named(self._found)

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
