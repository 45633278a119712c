"""Damaged checkpoints are moved to quarantine, never deleted, and only by the one writer of the run."""

import contextlib
import logging
import secrets
from collections.abc import Iterable
from pathlib import Path

from peakpoint.base.errors import CheckpointError, Undamaged
from peakpoint.base.lock import alone, briefly
from peakpoint.checkpointing.storage import journal, listing, store
from peakpoint.checkpointing.storage.manifest import PRODUCTION, read_manifest

log = logging.getLogger("peakpoint")

QUARANTINE = "quarantine"
ENDS = (".pt", ".safetensors", ".config.json", ".json.sig", ".json")
"""Suffixes of the files of one checkpoint or release."""


def set_aside(root: Path, damaged: Iterable[tuple[str, str]]) -> list[str]:
    """Move damaged checkpoints, each with the reason, to quarantine; returns those that were moved.

    None is moved when another process writes to the run, or the folder is read-only. Each is verified again
    first, since its writer may have replaced it.
    """
    moved = []
    with alone(listing.run_of(root), root) as only_writer:
        for file, reason in damaged if only_writer else ():
            with contextlib.suppress(OSError), briefly(root):
                if _is_damaged(root, file):
                    quarantine(root, file, reason)
                    moved.append(file)
    return moved


def _is_damaged(root: Path, file: str) -> bool:
    mark = (root / file).with_suffix(".json")
    if not mark.exists():  # its writer deleted it meanwhile
        return False
    try:
        store.verify(root, read_manifest(mark))
    except Undamaged:
        return False
    except CheckpointError:
        return True
    return False


def quarantine(root: Path, file: str, reason: str, ends: tuple[str, ...] = ()) -> None:
    """Move a damaged checkpoint to quarantine, and record why. The caller must be the one writer.

    `ends` are the suffixes of the files to move; empty for all that belong to the checkpoint.
    """
    folder = root / QUARANTINE
    folder.mkdir(exist_ok=True)
    flat = f"{secrets.token_hex(3)}_{file.replace('/', '_')}"
    for end in ends or _ends(root / file):
        with contextlib.suppress(FileNotFoundError):
            (root / file).with_suffix(end).replace((folder / flat).with_suffix(end))
    journal.append(root, "quarantined", file, reason)
    (folder / flat).with_suffix(".txt").write_text(f"{file}: {reason}\n")


def _ends(path: Path) -> tuple[str, ...]:
    """Return the suffixes of the files to move with a damaged one: its own if the manifest is another's."""
    with contextlib.suppress(CheckpointError):
        if Path(read_manifest(path.with_suffix(".json")).file).name != path.name:
            return (path.suffix,)
    return ENDS


def pass_over(root: Path, file: str, reason: str) -> None:
    """Warn that a checkpoint is damaged, and move it to quarantine if this process is the one writer."""
    if file.startswith(f"{PRODUCTION}/") or not set_aside(root, [(file, reason)]):
        log.warning("%s is damaged and was passed over: %s", file, reason)
    else:
        log.warning("%s is damaged and was moved to %s: %s", file, root / QUARANTINE, reason)


def whereabouts(root: Path, version: str) -> str:
    """Return where the files of a release that is not listed lie, as ` (...)`; empty when they are gone."""
    for folder, phrase in (
        (PRODUCTION, "its manifest cannot be read: see peakpoint verify"),
        (QUARANTINE, f"it was damaged and lies under {QUARANTINE}"),
    ):
        names = [path.name for end in ENDS for path in (root / folder).glob(f"*{end}")]
        if any(name.endswith(f"_v{version}{end}") for name in names for end in ENDS):
            return f" ({phrase})"
    return ""
