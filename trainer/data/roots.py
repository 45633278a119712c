"""Folders of data that only a record names: they are read, and nothing is made in them.

A run directory or a checkpoint may come from a stranger, and a user who resumes or measures it did not choose
the folder of its images. Decoded images and downloads go to a folder that the user or conf/ named.
"""

from pathlib import Path

from peakpoint.base import given

_recorded: set[Path] = set()


def note(root: str, *, by_record: bool) -> None:
    """Record whether only a record names `root`, or the user as well."""
    if root:
        (_recorded.add if by_record else _recorded.discard)(given.path(root, "data.root").resolve())


def may_write(root: Path) -> bool:
    """Whether something new may be made in the folder of the data."""
    return root.resolve() not in _recorded
