"""The disk space that a sweep takes, compared with what is free before it starts."""

from collections.abc import Sequence
from pathlib import Path

from peakpoint.trainer.config.schema import Config


def check(folder: Path, jobs: Sequence[tuple[int, Config]]) -> None:
    """Raise UserError where not even one checkpoint of each job fits; warn where all might not fit."""
