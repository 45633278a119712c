"""metadata/CHANGELOG.md: the changes from release to release, from the manifests and the journal alone.

It is generated and never a source of truth: `write` makes the same file again at any time.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

from peakpoint.base import semver
from peakpoint.base.bounded import read_bytes
from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.base.files import sweep, write_atomic
from peakpoint.base.given import as_mapping
from peakpoint.base.lock import briefly
from peakpoint.checkpointing.state.differences import Pairs, differ, flat, pairs
from peakpoint.checkpointing.storage import aliases, listing
from peakpoint.checkpointing.storage.aliases import Change
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.quarantine import whereabouts
from peakpoint.deployment.release import publish

log = logging.getLogger("peakpoint")

CHANGELOG = "metadata/CHANGELOG.md"

_HEAD = """# Changelog

Generated from the manifests and the journal in this folder: do not edit. Newest version first; what changed
is against the version before. Times are UTC.
"""
BYTES = "bytes"
"""Name of the file's size among the results."""
_LONGEST = 80
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A release and its differences from `before`, the previous version, None for the first.

    Each difference is a pair of values: `results` of metrics, sparsity and bytes, `config` of the resolved
    training configurations, `network` of the network descriptions. `there` is False for a release without a
    readable manifest, which only the journal records.
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
    changes = list(aliases.changes(root))
    journaled, present = publish.journaled(root), listing.by_version(root)
    found: list[Entry] = []
    previous: Manifest | None = None
    for version in sorted({*journaled, *present}, key=semver.key):
        manifest, facts = present.get(version), journaled.get(version, {})
        if manifest is not None:
            there = {"file": manifest.file, "git_commit": manifest.git_commit, "time": manifest.created}
            facts = {**facts, **(manifest.metadata or {}), **there}
        before = previous if manifest else None
        results = pairs(_results(before), _results(manifest))
        found.append(
            Entry(
                version=version,
                date=str(facts["time"])[:10],
                file=str(facts.get("file", "")),
                reason=str(facts.get("reason") or ""),
                source=as_mapping(facts.get("source")),
                git_commit=facts.get("git_commit"),
                before=listing.version_of(before) if before else None,
                results={name: pair for name, pair in results.items() if pair != [None, None]},
                config=differ(_trained_with(before), _trained_with(manifest)) if before and manifest else {},
                network=differ(flat(before.config), flat(manifest.config)) if before and manifest else {},
                aliases=tuple(change for change in changes if version in (change.version, change.before)),
                there=manifest is not None,
            )
        )
        previous = manifest or previous
    return found[::-1]


def _results(manifest: Manifest | None) -> dict[str, float | None]:
    if manifest is None:
        return {}
    return {**manifest.metrics, "sparsity": manifest.sparsity, BYTES: manifest.bytes}


def _trained_with(manifest: Manifest) -> dict[str, Any]:
    """Return the recorded training configuration and data fingerprint."""
    record = as_mapping(as_mapping(manifest.metadata).get("trained_with"))
    return flat({**as_mapping(record.get("config")), "fingerprint": as_mapping(record.get("fingerprint"))})


def text(root: Path) -> str:
    """Return the changelog in the style of keepachangelog.com."""
    parts = [_HEAD]
    if now := aliases.current(root):
        parts.append("".join(f"- {alias}: {version}\n" for alias, version in sorted(now.items())))
    parts += [_section(root, entry) for entry in entries(root)]
    return "\n".join(parts)


def _section(root: Path, entry: Entry) -> str:
    lines = [f"## [{entry.version}] - {entry.date}", ""]
    lines += [_words(entry.reason), ""] if entry.reason else []
    lost = "" if entry.there else whereabouts(root, entry.version) or "; its files are gone"
    lines.append(f"- File: {_code(entry.file)}{lost}")
    origin = [f"{key} {_code(entry.source[key])}" for key in ("run", "file") if entry.source.get(key)]
    origin += [f"commit {_code(entry.git_commit)}"] if entry.git_commit else []
    lines += [f"- From: {', '.join(origin)}"] if origin else []
    for change in entry.aliases:
        when = change.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        lines.append(f"- {when}: {_words(_in_words(change, entry.version))}")
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
    columns = [entry.version] if entry.before is None else [entry.before, entry.version, "change"]
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, (old, new) in entry.results.items():
        show = in_words if name == BYTES else "{:.6g}".format
        values = ["" if value is None else show(value) for value in (old, new)]
        values.append("" if old is None or new is None else _change(name, new - old))
        shown = values[1:2] if entry.before is None else values
        lines.append(f"| {'size' if name == BYTES else _words(name)} | {' | '.join(shown)} |")
    return lines


def _change(name: str, by: float) -> str:
    if name == BYTES and by:
        return f"{'+' if by > 0 else '-'}{in_words(abs(int(by)))}"
    return f"{by:+.4g}" if by else "0"


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
