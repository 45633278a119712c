"""Names for releases that change hands: champion, challenger_1. The journal is their only record.

An alias is set by one durable line of the journal, so a crash leaves it as it was or changed, never half; and
the lines before it say which release had the name at any time.
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from checkpointing import finding, journal
from checkpointing.errors import CheckpointError
from checkpointing.files import point

CHAMPION = "champion"
EVENT = "alias"

_NAME = re.compile(r"champion|challenger_[a-z0-9]+(_[a-z0-9]+)*")


def check(alias: str) -> None:
    """Raise CheckpointError unless `alias` is a name that a release may have."""
    if not _NAME.fullmatch(alias):
        raise CheckpointError(
            f"{alias!r} is not an alias: use champion, or challenger_1, challenger_wide and the like."
        )


def changes(root: Path, alias: str) -> Iterator[tuple[datetime, str | None]]:
    """When an alias was set, and to which version, oldest first; None is when it was taken away."""
    for fact in journal.vouched(root):
        if fact["event"] == EVENT and fact["alias"] == alias:
            yield datetime.fromisoformat(fact["time"]), fact["version"]


def current(root: Path) -> dict[str, str]:
    """The version that each alias names."""
    found: dict[str, str | None] = {}
    for fact in journal.vouched(root):
        if fact["event"] == EVENT:
            found[fact["alias"]] = fact["version"]
    return {alias: version for alias, version in found.items() if version is not None}


def at(root: Path, alias: str, when: datetime) -> str | None:
    """The version that an alias named at a time, which has a time zone; None when it named none."""
    named = None
    for time, version in changes(root, alias):
        if time <= when:
            named = version
    return named


def assign(root: Path, alias: str, version: str | None, reason: str) -> None:
    """Let an alias name a release, or no release any more; durable on return.

    The release is not verified here. Raises CheckpointError when there is none of that version.
    """
    check(alias)
    if version is not None and version not in map(finding.version_of, finding.releases(root)):
        raise CheckpointError(
            f"{root} has no release {version}: python -m checkpointing ls {root} lists them."
        )
    before = current(root).get(alias)
    journal.record(root, EVENT, {"alias": alias, "version": version, "before": before, "reason": reason})
    _point(root, alias, version)


def _point(root: Path, alias: str, version: str | None) -> None:
    """Let the symlink `production/<alias>.pt` follow: for people, nothing depends on it."""
    files = [Path(m.file) for m in finding.releases(root) if finding.version_of(m) == version]
    if files:
        point(root / finding.PRODUCTION / f"{alias}{files[0].suffix}", files[0].name)
    else:
        with contextlib.suppress(OSError):
            (root / finding.PRODUCTION / f"{alias}.pt").unlink()
