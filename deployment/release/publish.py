"""Releases on disk: the versions that are taken, the files under their names, the journal, the pointers."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from peakpoint.base import semver
from peakpoint.base.digests import SHA256
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import fsync_directory, sweep
from peakpoint.base.lock import briefly
from peakpoint.checkpointing.storage import aliases, journal, listing, quarantine, store
from peakpoint.checkpointing.storage.manifest import PRODUCTION, SUFFIXES, Manifest
from peakpoint.checkpointing.storage.store import Payload

log = logging.getLogger("peakpoint")

EVENT = "released"


def taken(root: Path) -> set[str]:
    """Return every version that was released, also those whose files are gone or damaged."""
    found = set(journaled(root))
    for path in (root / PRODUCTION).glob("*_v*.json"):
        if not path.name.endswith(".config.json"):
            with contextlib.suppress(CheckpointError):  # the file of another program
                version = path.stem.rpartition("_v")[2]
                semver.key(version)
                found.add(version)
    return found


def journaled(root: Path) -> dict[str, dict[str, Any]]:
    """Return the journal's line on each release, by version. Raises CheckpointError for a changed line."""
    return {str(fact.get("version")): fact for fact in journal.recorded(root) if fact["event"] == EVENT}


@contextlib.contextmanager
def alone(root: Path, names: Iterable[str]) -> Iterator[None]:
    """Hold the lock of releases under `root`, with all folders made and interrupted releases cleaned up."""
    folders = [root / PRODUCTION, *{(root / name).parent for name in names}]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for folder in {root, root.parent, *(folder.parent for folder in folders)}:
        fsync_directory(folder)
    with briefly(root / PRODUCTION):
        for manifest in unrecorded(root):
            record(root, manifest)
        aliases.point_latest(root)
        for folder in folders:
            sweep(folder)
        yield


@contextlib.contextmanager
def settled(root: Path) -> Iterator[None]:
    """Hold a shared lock under which no release is written: wait for the current one, delay the next."""
    folder = root / PRODUCTION
    with briefly(folder, shared=True) if folder.is_dir() else contextlib.nullcontext():
        yield


def publish(root: Path, manifest: Manifest, payload: Payload) -> Manifest:
    """Write the files of a release, its manifest last; others under their names go to quarantine.

    Returns the manifest with the digest of each file. Durable on return; on failure no file stays. Raises
    OSError, and CheckpointError where another process took one of the names.
    """
    weights = root / manifest.file
    paths = [*(root / name for name in payload), *(weights.with_suffix(end) for end in SUFFIXES)]
    for path in filter(os.path.lexists, dict.fromkeys(paths)):  # of interrupted releases, or other programs
        name = path.relative_to(root).as_posix()
        quarantine.quarantine(root, name, "it has no manifest", ends=(path.suffix,))
    with store.stage(root, payload, SHA256) as staged:
        found = {name: file.digest for name, file in staged.items()}
        size, digest = staged[manifest.file].size, found.pop(manifest.file)
        manifest = replace(manifest, bytes=size, digest=digest, companions=found)
        try:
            files = {name: file.create for name, file in staged.items()}
            store.commit(root, manifest, files, exclusive=True)
        except FileExistsError as error:  # where locks do not work
            raise CheckpointError(
                f"{error.filename2 or error.filename} was made by another process meanwhile: try again."
            ) from None
    return manifest


def record(root: Path, manifest: Manifest) -> None:
    """Record a release in the journal; after a failure the next release or repair does it."""
    metadata = manifest.metadata or {}
    try:
        journal.record(
            root,
            EVENT,
            {
                "version": listing.version_of(manifest),
                "file": manifest.file,
                "run": manifest.run,
                "source": metadata.get("source"),
                "reason": metadata.get("reason", ""),
                "git_commit": manifest.git_commit,
                "created": manifest.created,
            },
        )
    except CheckpointError as error:
        log.warning("%s is released, but not recorded in the journal yet: %s", manifest.file, error)


def unrecorded(root: Path) -> list[Manifest]:
    """Return the releases without a line in the journal: their writer was killed after the manifest."""
    recorded = journaled(root)
    return [m for version, m in listing.by_version(root).items() if version not in recorded]
