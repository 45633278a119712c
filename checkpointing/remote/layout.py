"""The remote folder of a run, read with distrust: names, sizes, digests, forms.

upload.py says what lies there, and in which order it is written.
"""

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from peakpoint.base import bounded
from peakpoint.base.bounded import LOG
from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.base.text import SMALL
from peakpoint.checkpointing.remote.client import Differs, Missing, Remote, RemoteError
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.manifest import (
    LARGEST,
    PRODUCTION,
    TIERS,
    Manifest,
    companions_of,
    parse_manifest,
    unsealed,
)

log = logging.getLogger("peakpoint")

FORMAT = 1
MARK = "mirror.json"
RECORDS = ("run.json", "status.json", "metrics.jsonl", ".hydra/*.yaml", ".hydra/*/*.yaml")
"""Files of a run's directory that a resume reads beside checkpoints."""
BOOKS = ("metadata/journal.jsonl", "metadata/CHANGELOG.md")
"""Logs of a checkpoint folder."""

BAD = (Differs, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""Errors of reading an untrusted text."""

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@,-]{0,200}")


class Damaged(RemoteError):  # noqa: N818 (the name says what is wrong)
    """An object is not what was written."""


def safe(name: str) -> bool:
    """Return whether a name from elsewhere may be that of a file here."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def companion_digests(manifest: Manifest) -> dict[str, str]:
    """Return the files of a release beside its weights, with their digests.

    Paths are relative to the checkpoint folder and stay within it. Raises CheckpointError for others.
    """
    found = companions_of(manifest)
    for file in found:
        parts = file.split("/")
        if not all(map(safe, parts)) or parts[0] not in (PRODUCTION, "metadata"):
            raise CheckpointError(f"{manifest.file} names {file!r} among its files: it leaves its folder.")
    return found


def manifest_key(file: str) -> str:
    """Return the manifest that belongs to a checkpoint, or to its signature."""
    return f"{file.rpartition('.')[0]}.json"


def read_mark(remote: Remote) -> dict[str, Any]:
    """Return the content of mirror.json. Raises Missing when there is none, Damaged, or RemoteError."""
    try:
        mark = _read(remote, MARK, unsealed, 1 << 16)
        if mark["format"] != FORMAT:
            raise RemoteError(
                f"{remote.url}/{MARK} is of format {mark['format']}, and this version reads {FORMAT}: "
                "use the version of Peakpoint that wrote it."
            )
        if not (safe(mark["run"]) and isinstance(mark["name"], str)):
            raise ValueError("it names no run")
    except BAD as error:
        raise Damaged(f"{remote.url}/{MARK} is damaged: {error}.") from None
    return mark


def _read(remote: Remote, key: str, parse: Callable[[bytes], T], limit: int = SMALL) -> T:
    """Return a small object as `parse` reads it, from a second download if the first is spoilt."""
    try:
        return parse(remote.read(key, limit))
    except (CheckpointError, *BAD) as error:
        if isinstance(error, RemoteError) and not isinstance(error, Differs):
            raise
        return parse(remote.read(key, limit))


def read_index(remote: Remote, sizes: Mapping[str, int]) -> tuple[dict[str, Manifest], list[str]]:
    """Return the manifests in a run's folder by file, oldest first, and what is wrong with others.

    `sizes` are the keys below checkpoints/. One counts only if its file is there in the recorded size.
    """
    found: list[Manifest] = []
    bad: list[str] = []
    for key in sizes:
        tier, _, name = key.partition("/")
        if tier not in TIERS or not name.endswith(".json") or name.endswith(".config.json"):
            continue
        try:
            if not safe(name):
                raise CheckpointError(
                    f"{remote.url} holds {key!r}, which is no name for a file here: passed over."
                )
            where = f"{remote.url}/checkpoints/{key}"
            if sizes[key] > LARGEST:
                raise CheckpointError(
                    f"{where} has {sizes[key]} bytes, too many for a manifest: passed over."
                )
            file = f"{key.removesuffix('.json')}.pt"
            manifest = _read(
                remote, f"checkpoints/{key}", functools.partial(parse_manifest, where=where, file=file)
            )
            if (size := sizes.get(manifest.file, 0)) != manifest.bytes:
                raise CheckpointError(
                    f"{where} says {manifest.bytes} bytes, and {size} are there: passed over."
                )
        except Missing:  # deleted since it was listed
            continue
        except CheckpointError as error:
            if isinstance(error, RemoteError) and not isinstance(error, Differs):
                raise
            bad.append(str(error))
        else:
            found.append(manifest)
    return {m.file: m for m in sorted(found, key=lambda m: (m.sequence, m.file))}, bad


def record_of(root: Path) -> dict[str, str]:
    """Return the texts beside the checkpoints under `root`, by their path from the run's directory."""
    run = listing.run_of(root)
    paths = [p for pattern in RECORDS for p in sorted(run.glob(pattern))] if run != root else []
    # A link could lead to a private file.
    found = {p.relative_to(run).as_posix(): p for p in paths if not p.is_symlink()}
    found |= {f"checkpoints/{book}": root / book for book in BOOKS}
    texts = {}
    for name, path in found.items():
        with contextlib.suppress(bounded.Absent):
            texts[name] = bounded.read_text(path, LOG)
    return texts


def newest_record(remote: Remote) -> tuple[int, dict[str, str]]:
    """Return the highest number of a record in a run's folder, and the texts of the newest sound one.

    Logs a warning for each that is passed over.
    """
    sizes = remote.find("record")
    keys = sorted((k for k in sizes if re.fullmatch(r"\d{6,9}\.json", k)), key=number, reverse=True)
    for key in keys:
        with contextlib.suppress(Missing):
            try:
                if sizes[key] > SMALL:
                    raise ValueError(f"it has {in_words(sizes[key])}, and a record {in_words(SMALL)} at most")
                found = _read(remote, f"record/{key}", unsealed)["files"]
                return number(keys[0]), {str(k): str(v) for k, v in found.items()}
            except BAD as error:
                log.warning("%s/record/%s is passed over: %s.", remote.url, key, str(error).rstrip("."))
    return number(keys[0]) if keys else 0, {}


def number(key: str) -> int:
    """Return the number of a record."""
    return int(key.removesuffix(".json"))
