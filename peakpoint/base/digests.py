"""Digests of files, each a text that names its algorithm: `blake3:` or `sha256:` and 64 hexadecimal digits.

BLAKE3 is several times as fast, so checkpoints have it; SHA-256 is what `sha256sum` checks, so releases do.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from blake3 import blake3

from peakpoint.base.bounded import opened

BLAKE3, SHA256 = "blake3", "sha256"
SAVED_WITH = BLAKE3
"""Algorithm of the digests of training and milestone checkpoints."""
ALL = min(os.cpu_count() or 1, 8)
"""Threads where no training runs. Not blake3.AUTO: a forked child lacks its threads, and would hang."""
PIECE = 4 << 20
"""Bytes that are read at a time, enough to share among threads."""

_DIGEST = re.compile(rf"({BLAKE3}|{SHA256}):[0-9a-f]{{64}}")


class Hasher(Protocol):
    """The common interface of hashlib and blake3."""

    @property
    def name(self) -> str:
        """Return the name of the algorithm."""
        ...

    def update(self, data: bytes | memoryview, /) -> Any:
        """Digest more bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the digest so far."""
        ...


HASHERS: dict[str, Callable[[], Hasher]] = {BLAKE3: blake3, SHA256: hashlib.sha256}
"""Constructors of an empty single-threaded digest by algorithm."""


def hasher(algorithm: str, threads: int = 1) -> Hasher:
    """Return an empty digest; BLAKE3 takes up to `threads` threads."""
    return blake3(max_threads=threads) if algorithm == BLAKE3 else HASHERS[algorithm]()


def named(found: Hasher) -> str:
    """Return the digest with the name of its algorithm."""
    return f"{found.name}:{found.hexdigest()}"


def parsed(text: str) -> str:
    """Return a digest that was read; without a name it is SHA-256. Raises ValueError for anything else."""
    digest = text if ":" in text else f"{SHA256}:{text}"
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{text[:80]!r} is not a digest")
    return digest


def of_bytes(content: bytes, algorithm: str) -> str:
    """Return the digest of bytes in memory."""
    found = hasher(algorithm)
    found.update(content)
    return named(found)


def stable_number(*key: str | int) -> int:
    """Return 63 bits of SHA-256 of a key: equal keys give equal numbers in every process and version."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def algorithm_of(digest: str) -> str:
    """Return the algorithm that a digest names."""
    return digest.partition(":")[0]


def digest_of(path: Path, algorithm: str, threads: int = ALL) -> str:
    """Return the digest of a regular file, read in pieces. Raises CheckpointError for another, or OSError.

    Not by a map of the file: one that is cut short or cannot be read meanwhile would end the process.
    """
    piece = memoryview(bytearray(PIECE))
    with opened(path) as file:
        found = hasher(algorithm, threads if os.fstat(file.fileno()).st_size > PIECE else 1)
        while size := file.raw.readinto(piece):
            found.update(piece[:size])
    return named(found)


def matches(path: Path, digest: str, threads: int = ALL) -> bool:
    """Return whether a regular file has a digest. Raises as digest_of."""
    return digest_of(path, algorithm_of(digest), threads) == digest
