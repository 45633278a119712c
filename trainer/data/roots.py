"""Folders of data that only a record names: they are read, and nothing is made in them.

A run directory or a checkpoint may come from anybody, and whoever resumes or measures it did not choose where
its images lie. Decoded images and downloads go to a folder that the user or conf/ named.
"""

from pathlib import Path

from peakpoint.base import given

_recorded: set[Path] = set()


def note(root: str, *, by_record: bool) -> None:
    """Note whether a record alone says that data lie in `root`, or the user as well."""
    if root:
        (_recorded.add if by_record else _recorded.discard)(given.path(root, "data.root").resolve())


def may_write(root: Path) -> bool:
    """Whether something new may be made in the folder of the data."""
    return root.resolve() not in _recorded
