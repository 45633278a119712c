"""The contents of a checkpoint folder: tiers, checkpoints of the run, releases."""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from peakpoint.base import bounded, semver
from peakpoint.base.errors import CheckpointError, Undamaged
from peakpoint.base.lock import present
from peakpoint.base.text import in_short
from peakpoint.checkpointing.storage import foreign
from peakpoint.checkpointing.storage.manifest import (
    MILESTONE,
    PRODUCTION,
    SUFFIXES,
    TIERS,
    TRAINING,
    Manifest,
    read_manifest,
)

log = logging.getLogger("peakpoint")


LIBRARY = "library-"
"""Prefix of the library's runs, which sets them apart from a trainer's in the same directory."""

Mark = tuple[int, int, int]
"""Inode, time of change in ns, and size in bytes: they change when a file is written anew."""


class Index:
    """The manifests of the tiers under `root`, each read once until its file changes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._read: dict[str, tuple[Mark, Manifest | CheckpointError]] = {}

    def manifests(self) -> list[Manifest]:
        """List the folders, read new manifests, and return every readable one, oldest first."""
        seen, root = {}, present(self._root, or_named=True)
        for tier in (TRAINING, MILESTONE):
            for name, mark in _manifests(root / tier):
                file = f"{tier}/{name}"
                before = self._read.get(file)
                # A manifest that could not be read is tried again: a disk error may not repeat.
                if before and before[0] == mark and isinstance(before[1], Manifest):
                    seen[file] = before
                elif (read := _read(root / file)) is not None:
                    seen[file] = (mark, read)
        self._read = seen
        found = [read for _, read in seen.values() if isinstance(read, Manifest)]
        return sorted(found, key=lambda m: (m.sequence, m.file))

    def unreadable(self, *, read_only: bool = False) -> list[tuple[str, str]]:
        """Return the files whose manifests could not be read last time, each with the reason.

        Raises Undamaged for one that another version wrote or this process may not read, which must not be
        moved as damaged; with `read_only`, for callers that move nothing, it is returned with the others.
        """
        found = []
        for file, (_, read) in sorted(self._read.items()):
            if isinstance(read, Undamaged) and not read_only:
                raise read
            if isinstance(read, CheckpointError):
                found.append((f"{file.removesuffix('.json')}.pt", str(read)))
        return found


def _manifests(folder: Path) -> Iterator[tuple[str, Mark]]:
    """Yield the names of the manifests in a folder; nothing when there is no folder.

    Raises Denied for a folder that this process may not list: it may hold checkpoints.
    """
    with contextlib.suppress(OSError):
        try:
            entries = os.scandir(folder)
        except PermissionError as error:
            raise bounded.unread(folder, error) from None
        with entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    # It may be deleted since, and of a link, what it names.
                    with contextlib.suppress(OSError):
                        found = entry.stat()
                        yield entry.name, (found.st_ino, found.st_mtime_ns, found.st_size)


def _read(path: Path) -> Manifest | CheckpointError | None:
    """Return a manifest or its error; None when its writer deleted it after it was listed."""
    try:
        return read_manifest(path)
    except CheckpointError as error:
        return error if os.path.lexists(path) else None


def is_root(path: Path) -> bool:
    """Return whether a folder holds checkpoints by tier."""
    return any((path / tier).is_dir() for tier in TIERS)


def checkpoint_root(path: Path) -> Path:
    """Return the checkpoint folder of a run directory, or the folder itself. Raises CheckpointError."""
    for root in (path / "checkpoints", path):
        if is_root(root):
            return root
    raise CheckpointError(no_checkpoints(path))


def check_outside(path: Path) -> None:
    """Raise CheckpointError for a path inside the checkpoint folder of another: no command would find it."""
    for root in Path(os.path.realpath(path)).parents:
        if _is_in_use(root):
            raise CheckpointError(f"{path} lies among the checkpoints under {root}: choose another place.")


def check_apart(place: Path, run: Path) -> None:
    """Raise CheckpointError for the folder of a mirror that lies in or around the run directory `run`."""
    mirror, directory = Path(os.path.realpath(place)), Path(os.path.realpath(run))
    if mirror.is_relative_to(directory) or directory.is_relative_to(mirror):
        raise CheckpointError(
            f"The mirror {place} and the run directory {run} lie one within the other: choose another place."
        )


def _is_in_use(root: Path) -> bool:
    """Return whether a folder is that of a run or holds a checkpoint; its name alone may be a coincidence."""
    if root.name == "checkpoints" and run_id(root) is not None:
        return True
    marks = (root / tier / name for tier in TIERS for name, _ in _manifests(root / tier))
    return any(isinstance(_read(mark), Manifest) for mark in marks)


def no_checkpoints(path: Path) -> str:
    """Return the message for a path that is not a run."""
    if not os.path.lexists(path):
        return f"{path} does not exist."
    return f"{path} has no checkpoints: name a run directory, such as outputs/RUN.{foreign.described(path)}"


def run_id(root: Path) -> str | None:
    """Return the run that a checkpoint folder belongs to by its run.json, None without one."""
    with contextlib.suppress(CheckpointError, KeyError):
        return str(bounded.read_json(run_of(root) / "run.json")["run"])
    return None


def own(root: Path, found: Iterable[Manifest]) -> list[Manifest]:
    """Return those of `found` that are of the folder's run or of the library, or are releases.

    Checkpoints of another run are passed over with a warning.
    """
    found, run = list(found), run_id(root)
    mine = [m for m in found if run in (None, m.run) or m.tier == PRODUCTION or m.run.startswith(LIBRARY)]
    if len(mine) < len(found):
        log.warning("%s", of_others(root, [m.file for m in found if m not in mine]))
    return mine


def of_others(root: Path, files: Sequence[str]) -> str:
    """Return the message for checkpoints of another run in the folder of a run."""
    return f"Of another run than that of {run_of(root)}, and passed over: {in_short(files)}."


def version_of(manifest: Manifest) -> str:
    """Return the version of a release. Raises CheckpointError when its manifest or name lacks it."""
    if not manifest.tags or not manifest.tags[0].startswith("v"):
        raise CheckpointError(f"{manifest.file} has no version in its manifest.")
    if not Path(manifest.file).stem.endswith(f"_{manifest.tags[0]}"):
        raise CheckpointError(f"{manifest.file} is {manifest.tags[0]} by its manifest: it was renamed.")
    return manifest.tags[0][1:]


def check_tier(tier: str) -> None:
    """Raise CheckpointError unless `tier` is one of the three."""
    if tier not in TIERS:
        raise CheckpointError(f"There is no tier {tier!r}: choose one of {', '.join(TIERS)}.")


def in_tier(root: Path, tier: str) -> list[Manifest]:
    """Return the checkpoints of a tier whose file exists: oldest first, releases by version."""
    check_tier(tier)
    everything = releases(root) if tier == PRODUCTION else manifests(root)
    found = [m for m in everything if m.tier == tier]
    return [m for m in found if (root / m.file).exists()]


def described_by(mark: Path) -> Path:
    """Return the file beside a manifest, also one that cannot be read."""
    there = [mark.with_suffix(end) for end in SUFFIXES if mark.with_suffix(end).exists()]
    return there[0] if there else mark.with_suffix(".pt")


def manifest_files(root: Path, tier: str) -> list[Path]:
    """Return the files of the manifests in a tier, by name, without the configs of releases."""
    names = sorted(name for name, _ in _manifests(root / tier) if not name.endswith(".config.json"))
    return [root / tier / name for name in names]


def releases(root: Path) -> list[Manifest]:
    """Return every readable release, lowest version first."""
    found = []
    for path in manifest_files(root, PRODUCTION):
        with contextlib.suppress(CheckpointError):
            manifest = read_manifest(path)
            found.append((semver.key(version_of(manifest)), manifest))
    return [manifest for _, manifest in sorted(found, key=lambda pair: pair[0])]


def by_version(root: Path) -> dict[str, Manifest]:
    """Return every readable release by its version, lowest first."""
    return {version_of(manifest): manifest for manifest in releases(root)}


def unreadable_releases(root: Path, *, read_only: bool = False) -> list[tuple[str, str]]:
    """Return the files under `production` whose manifests cannot be read or name no release, with reasons.

    Raises Undamaged as Index.unreadable does.
    """
    found = []
    for path in manifest_files(root, PRODUCTION):
        try:
            semver.key(version_of(read_manifest(path)))
        except CheckpointError as error:
            if isinstance(error, Undamaged) and not read_only:
                raise
            found.append((f"{PRODUCTION}/{described_by(path).name}", str(error)))
    return found


def manifests(root: Path) -> list[Manifest]:
    """Return every readable manifest under `root`, oldest first."""
    return Index(root).manifests()


def unreadable(root: Path) -> list[tuple[str, str]]:
    """Return the files under `root` whose manifests cannot be read, each with the reason.

    Raises Undamaged as Index.unreadable does.
    """
    index = Index(root)
    index.manifests()
    return index.unreadable()


def run_of(root: Path) -> Path:
    """Return the run directory that a checkpoint folder belongs to, or the folder itself."""
    return root.parent if root.name == "checkpoints" else root
