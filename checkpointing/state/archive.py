"""Whether a `.pt` file that nothing vouches for can be opened within bounds."""

import os
import zipfile
from pathlib import Path

from peakpoint.base.bounded import opened
from peakpoint.base.errors import CheckpointError

RATIO = 10
"""How many times its own size a file may unpack to; torch.save packs nothing."""


def check_archive(path: Path, limit_bytes: int) -> None:
    """Refuse a file that would unpack to more than `limit_bytes`, or to RATIO times its own size.

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
    if total > RATIO * size:
        raise CheckpointError(f"{path} has {size} bytes and would unpack to {total}: refused.")
