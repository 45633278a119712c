"""Links in a run: the folders and records of a run lie in it, or nobody reads or writes through them."""

import os
from pathlib import Path

from peakpoint.base.errors import CheckpointError

NAMED = (
    *("checkpoints", "training", "milestone", "production", "metadata", "quarantine"),
    *(".hydra", "tensorboard", "run.json", "status.json", "metrics.jsonl"),
)
"""Folders and records of a run or of a checkpoint folder."""
LISTED = ("checkpoints", ".hydra", ".hydra/resume-*")
"""Folders whose entries are folders or records, too."""


def refuse(directory: Path) -> None:
    """Raise CheckpointError when a folder or a record of a run is a link that leads out of its directory.

    The directory itself may be a link, which its user chose. Pointers beside the checkpoints may name
    anything: no code path reads them back to decide anything.
    """
    places = [directory / name for name in NAMED]
    places += [entry for folder in LISTED for entry in directory.glob(f"{folder}/*")]
    real = os.path.realpath(directory)
    for place in places:
        if place.is_symlink() and not Path(os.path.realpath(place)).is_relative_to(real):
            raise CheckpointError(
                f"{place} is a link to {os.path.realpath(place)}, outside {directory}, and is not followed: "
                "put the folder or file itself there."
            )
