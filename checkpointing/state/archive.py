"""Bounds for `.pt` files without a manifest: entries, memory, nesting."""

import math
import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peakpoint.base.bounded import opened
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.base.text import DEEPEST

PACKED = 10
"""Largest ratio of the entries' bytes to the file's; torch.save packs nothing."""
FLOOR, RATIO = 2**30, 256
"""Bytes that the tensors of any file may fill, and largest ratio of them to the file's."""
VALUE = 64
"""Bytes that a value takes in memory at least."""
PLAIN = (str, int, float, bool, type(None), bytes)
"""Types of a checkpoint beside tensors and containers."""


def check_archive(path: Path, limit_bytes: int) -> None:
    """Refuse a file that would unpack to more than `limit_bytes`, or to PACKED times its own size.

    Reads the list of entries alone. Raises CheckpointError, also when it is no archive as torch.save writes.
    """
    try:
        with opened(path) as file, zipfile.ZipFile(file) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
            size = os.fstat(file.fileno()).st_size
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is not a checkpoint archive: {error}.") from None
    if total > limit_bytes:
        raise CheckpointError(f"{path} would unpack to {total} bytes and {limit_bytes} are allowed: refused.")
    if total > PACKED * size:
        raise CheckpointError(f"{path} has {size} bytes and would unpack to {total}: refused.")


def limit(path: Path) -> int:
    """Return the bytes of memory that the contents of a file may fill. Raises CheckpointError."""
    try:
        return max(FLOOR, RATIO * path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {os_reason(error)}.") from None


def check_bounds(state: Any, limit: int) -> None:
    """Raise ValueError for a state of more bytes, values or levels than a small file may stand for.

    A tensor of any shape can store one number; a list can hold another many times, at each of many levels.
    """
    level, values, size = [state], 0, 0
    for _ in range(DEEPEST):
        children: list[Any] = []
        for value in level:
            if isinstance(value, Tensor):
                size += math.prod(value.shape) * value.element_size()
                if size > limit:
                    raise ValueError(f"its tensors would fill more than {limit} bytes")
                continue
            inner = value.values() if isinstance(value, Mapping) else value
            if isinstance(inner, Collection):
                values += len(inner)
                children += [each for each in inner if type(each) not in PLAIN]
            if values > limit // VALUE:
                raise ValueError(f"it would hold more than {limit // VALUE} values")
        level = children
    if level:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
