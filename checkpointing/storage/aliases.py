"""Names for releases that change hands: champion, challenger_1. The journal is their only record.

An alias is set by one durable line of the journal, so that a crash leaves the old or the new release; earlier
lines tell which release had the name at any time. Processes that set one are serialised.

The order of the lines decides, not their times, since clocks go backwards. A line counts as no later than any
line after it, so that the last line with a time up to `when` was in force then.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from peakpoint.base import files, semver
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.base.lock import briefly
from peakpoint.checkpointing.storage import journal, listing, quarantine
from peakpoint.checkpointing.storage.manifest import PRODUCTION, SUFFIXES, Manifest

CHAMPION = "champion"
LATEST = "latest"
"""Pointer to the highest version, which is not an alias."""
EVENT = "alias"
SET, REMOVED, ROLLED_BACK = "set", "removed", "rolled back"

_NAME = re.compile(r"champion|challenger_[a-z0-9]+(_[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class Change:
    """An alias came to name `version` instead of `before`, None for no release.

    `how` is set, removed or rolled back; `time` is UTC.
    """

    time: datetime
    alias: str
    version: str | None
    before: str | None
    how: str
    reason: str


def check(alias: str) -> None:
    """Raise CheckpointError unless `alias` is a name that a release may have."""
    if not _NAME.fullmatch(alias):
        raise CheckpointError(
            f"{alias!r} is not an alias: use champion, or challenger_1, challenger_wide and the like."
        )


def changes(root: Path, alias: str | None = None) -> Iterator[Change]:
    """Yield the changes of an alias, or of all, in order. Raises CheckpointError.

    A journal in which any line was changed is refused as a whole.
    """
    for fact in journal.recorded(root):
        if fact["event"] == EVENT and alias in (None, fact.get("alias")):
            yield _change(root, fact)


def _change(root: Path, fact: Mapping[str, Any]) -> Change:
    try:
        time, alias, version, before = (fact[key] for key in ("time", "alias", "version", "before"))
        check(alias)
        when = datetime.fromisoformat(time)
        if when.tzinfo is None or not all(isinstance(v, str | None) for v in (version, before)):
            raise TypeError
    except (KeyError, TypeError, ValueError, CheckpointError):
        raise CheckpointError(
            f"{root / journal.JOURNAL}: line number {fact[journal.NUMBER]} of the sealed ones is of another "
            "version: use the version of Peakpoint that wrote it."
        ) from None
    how, reason = (str(fact.get(key, "")) for key in ("how", "reason"))
    return Change(time=when, alias=alias, version=version, before=before, how=how, reason=reason)


def current(root: Path) -> dict[str, str]:
    """Return the version that each alias names."""
    found = {change.alias: change.version for change in changes(root)}
    return {alias: version for alias, version in found.items() if version is not None}


def at(root: Path, alias: str, when: datetime) -> str | None:
    """Return the version that an alias named at a time, which has a time zone; None when it named none."""
    named = None
    for change in changes(root, alias):
        if change.time <= when:
            named = change.version
    return named


def doubts(history: Sequence[Change]) -> list[str]:
    """Return sentences on what makes the history of one alias uncertain."""
    found = []
    if any(later.time < earlier.time for earlier, later in itertools.pairwise(history)):
        found.append("The clock went backwards between changes: their order in the journal decides.")
    ends = [None, *(change.version for change in history)]
    for end, change in zip(ends, history, strict=False):
        if change.before != end:
            when = change.time.isoformat(sep=" ", timespec="seconds")
            had = f"{change.before or 'no release'} had the alias then"
            found.append(f"A line is missing from the journal before {when}: {had}.")
    return found


def no_release(root: Path, version: str) -> str:
    """Return the message for a version that is not released, without a remedy, and where its files lie.

    Raises CheckpointError for a text that is no version.
    """
    semver.key(version)
    return f"{root} has no release {version}{quarantine.whereabouts(root, version)}"


def release_of(root: Path, alias: str) -> Manifest | None:
    """Return the release that an alias names, not verified, None when it names none.

    Raises CheckpointError when that release is missing.
    """
    version = current(root).get(alias)
    if version is None:
        return None
    found = listing.by_version(root).get(version)
    if found is None:
        where = quarantine.whereabouts(root, version)
        raise CheckpointError(
            f"{alias} is {version}, which is not under {root}{where}: roll back to one that is."
        )
    return found


def named(root: Path, alias: str) -> Manifest | None:
    """Return the release of an alias, not verified; None for another name, or an alias that was never set.

    Raises CheckpointError when the alias was removed, or its release is missing.
    """
    if not _NAME.fullmatch(alias):
        return None
    release = release_of(root, alias)
    if release is None and any(changes(root, alias)):
        raise CheckpointError(f"{alias} names no release of {root} any more: set it with peakpoint alias.")
    return release


def before(history: Sequence[Change]) -> str | None:
    """Return the version before the present one, or the last one of a removed alias; None without one.

    A release that was rolled back from never returns: from 1.2.0 back to 1.1.0, then to 1.0.0.
    """
    earlier: list[str] = []
    for change in history:
        if change.how == ROLLED_BACK:
            while change.version in earlier and earlier[-1] != change.version:
                earlier.pop()
            earlier = [version for version in earlier if version != change.before]
        if change.version is not None:
            earlier.append(change.version)
    now = history[-1].version if history else None
    return next((version for version in reversed(earlier) if version != now), None)


def assign(
    root: Path, alias: str, version: str | None, reason: str, *, rolled_back: Sequence[Change] | None = None
) -> Change | None:
    """Make an alias name a release, or none; durable on return. Returns None when nothing changed.

    The release is not verified. `rolled_back` marks a rollback and is the history that it was based on.
    Raises CheckpointError when there is no release of that version, or when the history has grown since.
    """
    check(alias)
    with _alone(root):
        history = list(changes(root, alias))
        now = history[-1].version if history else None
        if rolled_back is not None and len(rolled_back) != len(history):
            raise CheckpointError(
                f"{alias} was set to {now or 'no release'} while {version} was verified: try again."
            )
        if version is not None and version not in listing.by_version(root):
            raise CheckpointError(f"{no_release(root, version)}: peakpoint ls {root} lists them.")
        if version != now:
            how = REMOVED if version is None else SET if rolled_back is None else ROLLED_BACK
            plain = reason.encode("utf-8", "replace").decode()  # a command line may bring any bytes
            fact = {"alias": alias, "version": version, "before": now, "how": how, "reason": plain}
            journal.record(root, EVENT, fact)
        set_pointer(root, alias, version)
        return list(changes(root, alias))[-1] if version != now else None


def point_latest(root: Path) -> None:
    """Make the symlink `production/latest` name the highest version; no code path depends on it."""
    if found := listing.releases(root):
        set_pointer(root, LATEST, listing.version_of(found[-1]))


def set_pointer(root: Path, name: str, version: str | None) -> None:
    """Make the symlink `production/<name>`, under the suffix of its file and no other, name a release.

    A file of that name is left alone, except for `latest`: copying a folder may turn the link into a file.
    """
    release = listing.by_version(root).get(version or "")
    file = Path(release.file) if release else None
    for suffix in SUFFIXES:
        link = root / PRODUCTION / f"{name}{suffix}"
        if (
            file is not None
            and file.suffix == suffix
            and (name == LATEST or link.is_symlink() or not link.exists())
        ):
            files.set_link(link, file.name)
        elif link.is_symlink():
            with contextlib.suppress(OSError):
                link.unlink()


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(briefly(root))
        except OSError as error:
            raise CheckpointError(f"{root} cannot be opened: {os_reason(error)}.") from None
        yield
