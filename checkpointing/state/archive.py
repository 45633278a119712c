"""Whether a `.pt` file that nothing vouches for can be opened, and its contents walked, within bounds."""

import math
import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from peakpoint.base.bounded import DEEPEST, opened
from peakpoint.base.errors import CheckpointError, os_reason

PACKED = 10
"""How many times its own size the entries of a file may have; torch.save packs nothing."""
FLOOR, RATIO = 2**30, 256
"""The tensors of a file may fill this many bytes, or this many times its size."""
VALUE = 64
"""Bytes that a value takes in memory, at least."""
PLAIN = (str, int, float, bool, type(None), bytes)
"""What a checkpoint holds beside tensors and containers."""


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
    """How many bytes of memory the contents of a file may fill. Raises CheckpointError."""
    try:
        return max(FLOOR, RATIO * path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {os_reason(error)}.") from None


def check_bounds(state: Any, limit: int) -> None:
    """Raise ValueError for what a small file stands for and nobody could copy, or walk to its end.

    A tensor can be one number under any shape; a list can hold another many times, in each of many levels.
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
