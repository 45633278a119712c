"""The manifests of a checkpoint folder, each read once for as long as its file stays the same."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from peakpoint.base.errors import CheckpointError, FormatError
from peakpoint.base.lock import followed
from peakpoint.checkpointing.storage.manifest import MILESTONE, TRAINING, Manifest, read_manifest

Mark = tuple[int, int, int]
"""What changes when a file is written anew: inode, time and size."""


class Index:
    """The manifests of the tiers under `root`; `look` says what there is now."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[str, tuple[Mark, Manifest | CheckpointError]] = {}

    def look(self) -> list[Manifest]:
        """Every readable manifest, oldest first: the folders are listed once, and what is new is read."""
        seen, root = {}, followed(self._root)
        for tier in (TRAINING, MILESTONE):
            for name, mark in _manifests(root / tier):
                file = f"{tier}/{name}"
                before = self._read.get(file)
                # What could not be read is tried again: a disk that failed once may not fail twice.
                if before and before[0] == mark and isinstance(before[1], Manifest):
                    seen[file] = before
                elif (read := _read(root / file)) is not None:
                    seen[file] = (mark, read)
        self._read = seen
        found = [read for _, read in seen.values() if isinstance(read, Manifest)]
        return sorted(found, key=lambda m: (m.sequence, m.file))

    def unreadable(self, *, only_looks: bool = False) -> list[tuple[str, str]]:
        """The files whose manifests could not be read by the last look, each with the reason.

        Raises FormatError for a sound one of another version: who moves what is damaged must not move that.
        Who `only_looks` gets it with the others.
        """
        found = []
        for file, (_, read) in sorted(self._read.items()):
            if isinstance(read, FormatError) and not only_looks:
                raise read
            if isinstance(read, CheckpointError):
                found.append((f"{file.removesuffix('.json')}.pt", str(read)))
        return found


def _manifests(folder: Path) -> Iterator[tuple[str, Mark]]:
    """The names in a folder that are those of manifests, none when there is no folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".json"):
                with contextlib.suppress(OSError):  # deleted since it was listed; of a link, what it names
                    found = entry.stat()
                    yield entry.name, (found.st_ino, found.st_mtime_ns, found.st_size)


def _read(path: Path) -> Manifest | CheckpointError | None:
    """A manifest or why it cannot be read; None when its writer deleted it after it was listed."""
    try:
        return read_manifest(path)
    except CheckpointError as error:
        return error if os.path.lexists(path) else None
