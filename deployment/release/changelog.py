"""metadata/CHANGELOG.md: the changes from release to release, from the manifests and the journal alone.

It is generated and never a source of truth: `write` makes the same file again at any time.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from semver import Version

from peakpoint.base import semver
from peakpoint.base.bounded import read_bytes
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.base.files import sweep, write_atomic
from peakpoint.base.lock import briefly
from peakpoint.checkpointing.state.differences import Pairs, differ, flat, pairs
from peakpoint.checkpointing.storage import aliases, journal, listing
from peakpoint.checkpointing.storage.aliases import Change
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.release.publish import EVENT as RELEASED

log = logging.getLogger("peakpoint")

CHANGELOG = "metadata/CHANGELOG.md"

_HEAD = """# Changelog

Generated from the manifests and the journal in this folder: do not edit. Newest version first; what changed
is against the version before. Times are UTC.
"""
_LONGEST = 80
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A release and its differences from `before`, the previous version, None for the first.

    Each difference is a pair of values: `results` of metrics, sparsity and MB, `config` of the resolved
    training configurations, `network` of the network descriptions. `there` is False for a release whose files
    are gone, which only the journal records.
    """

    version: str
    date: str
    file: str
    reason: str
    source: Mapping[str, Any]
    git_commit: str | None
    before: str | None
    results: Pairs
    config: Pairs
    network: Pairs
    aliases: tuple[Change, ...]
    there: bool


def entries(root: Path) -> list[Entry]:
    """Return every present and past release, highest version first. Raises CheckpointError."""
    changes = tuple(aliases.changes(root))
    journaled = {str(f.get("version")): f for f in journal.vouched(root) if f["event"] == RELEASED}
    found: list[tuple[Version, Entry]] = []
    previous: Manifest | None = None
    for manifest in listing.releases(root):
        version = listing.version_of(manifest)
        fact = journaled.pop(version, {})
        found.append((semver.key(version), _entry(manifest, previous, fact, changes)))
        previous = manifest
    for version, fact in journaled.items():
        found.append((semver.key(version), _gone(version, fact, changes)))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _entry(
    manifest: Manifest, previous: Manifest | None, fact: Mapping[str, Any], changes: Sequence[Change]
) -> Entry:
    version, notes = listing.version_of(manifest), manifest.metadata or {}
    return Entry(
        version=version,
        date=manifest.created[:10],
        file=manifest.file,
        reason=str(notes.get("reason") or fact.get("reason") or ""),
        source=_mapping(notes.get("source")),
        git_commit=manifest.git_commit,
        before=listing.version_of(previous) if previous else None,
        results={k: v for k, v in pairs(_results(previous), _results(manifest)).items() if v != [None, None]},
        config=differ(_trained_with(previous), _trained_with(manifest)) if previous else {},
        network=differ(flat(previous.config or {}), flat(manifest.config or {})) if previous else {},
        aliases=tuple(c for c in changes if version in (c.version, c.before)),
        there=True,
    )


def _gone(version: str, fact: Mapping[str, Any], changes: Sequence[Change]) -> Entry:
    return Entry(
        version=version,
        date=str(fact["time"])[:10],
        file=str(fact.get("file", "")),
        reason=str(fact.get("reason", "")),
        source=_mapping(fact.get("source")),
        git_commit=fact.get("git_commit"),
        before=None,
        results={},
        config={},
        network={},
        aliases=tuple(c for c in changes if version in (c.version, c.before)),
        there=False,
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _results(manifest: Manifest | None) -> dict[str, float | None]:
    if manifest is None:
        return {}
    return {**manifest.metrics, "sparsity": manifest.sparsity, "MB": manifest.bytes / 1e6}


def _trained_with(manifest: Manifest) -> dict[str, Any]:
    """Return the recorded training configuration and data fingerprint."""
    record = _mapping(_mapping(manifest.metadata).get("trained_with"))
    return flat({**_mapping(record.get("config")), "fingerprint": _mapping(record.get("fingerprint"))})


def text(root: Path) -> str:
    """Return the changelog in the style of keepachangelog.com."""
    parts = [_HEAD]
    if now := aliases.current(root):
        parts.append("".join(f"- {alias}: {version}\n" for alias, version in sorted(now.items())))
    parts += map(_section, entries(root))
    return "\n".join(parts)


def _section(entry: Entry) -> str:
    lines = [f"## [{entry.version}] - {entry.date}", ""]
    lines += [_words(entry.reason), ""] if entry.reason else []
    size = "" if entry.there else "; its files are gone"
    lines.append(f"- File: {_code(entry.file)}{size}")
    origin = [f"{key} {_code(entry.source[key])}" for key in ("run", "file") if entry.source.get(key)]
    origin += [f"commit {_code(entry.git_commit)}"] if entry.git_commit else []
    lines += [f"- From: {', '.join(origin)}"] if origin else []
    lines += [f"- {_time(c.time)}: {_words(_in_words(c, entry.version))}" for c in entry.aliases]
    if entry.results:
        lines += ["", "### Results", "", *_table(entry)]
    for title, found in (("Training configuration", entry.config), ("Network", entry.network)):
        if found:
            lines += ["", f"### {title}", ""]
            lines += [f"- {_code(key)}: {_code(old)} to {_code(new)}" for key, (old, new) in found.items()]
    return "\n".join(lines) + "\n"


def _in_words(change: Change, version: str) -> str:
    if change.version == version:
        what = f"{change.alias}" + (f" in place of {change.before}" if change.before else "")
    else:
        what = f"no longer {change.alias}" + (f", which is {change.version}" if change.version else "")
    how = f" ({change.how})" if change.how == aliases.ROLLED_BACK else ""
    return f"{what}{how}: {change.reason}" if change.reason else what + how


def _table(entry: Entry) -> list[str]:
    if entry.before is None:
        head = ["| |", f" {entry.version} |"]
    else:
        head = ["| |", f" {entry.before} | {entry.version} | change |"]
    lines = ["".join(head), "|---|" + "---:|" * (1 if entry.before is None else 3)]
    for name, (old, new) in entry.results.items():
        change = _signed(new - old) if isinstance(old, int | float) and isinstance(new, int | float) else ""
        values = [_number(new)] if entry.before is None else [_number(old), _number(new), change]
        lines.append(f"| {_words(name)} | " + " | ".join(values) + " |")
    return lines


def _signed(change: float) -> str:
    return f"{change:+.4g}" if change else "0"


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}"


def _time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _words(value: str) -> str:
    """Return free text as one line, escaped for Markdown."""
    line = " ".join(value.split())
    return "".join(f"\\{c}" if c in "\\`*[]<>|" else c for c in line)


def _code(value: object) -> str:
    line = " ".join(_short(value).split()).replace("`", "'")
    return f"`{line if len(line) <= _LONGEST else line[: _LONGEST - 3] + '...'}`"


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(f'{v:.6g}' if isinstance(v, float) else str(v) for v in value)}]"
    text = str(value)
    return f"{text[:12]}..." if _SHA256.fullmatch(text) else text


def write(root: Path) -> Path:
    """Generate metadata/CHANGELOG.md and return its path. Raises CheckpointError."""
    path = root / CHANGELOG
    try:
        with briefly(root):  # or an outdated text could be written last
            content = text(root)
            if not is_current(path, content):
                path.parent.mkdir(exist_ok=True)
                sweep(path.parent)
                write_atomic(path, content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {os_reason(error)}.") from None
    return path


def is_current(path: Path, content: str) -> bool:
    """Return whether a file holds this text already."""
    try:
        return read_bytes(path) == content.encode()
    except CheckpointError:
        return False


def refresh(root: Path) -> None:
    """Call `write` after an operation that must not fail by it: a failure is logged as a warning."""
    try:
        write(root)
    except CheckpointError as error:
        log.warning("The changelog is not up to date: %s", error)
