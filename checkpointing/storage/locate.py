"""From a path or a tier to a checkpoint that verifies. A pointer is only a name: no symlink is trusted."""

import contextlib
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from peakpoint.base.errors import CheckpointError, Undamaged
from peakpoint.checkpointing.storage import aliases, foreign, listing, store
from peakpoint.checkpointing.storage.listing import Index, check_tier, in_tier, own
from peakpoint.checkpointing.storage.manifest import AVERAGE, PRODUCTION, TIERS, Manifest, read_manifest
from peakpoint.checkpointing.storage.quarantine import pass_over

log = logging.getLogger("peakpoint")


READ_ATTEMPTS = 10
"""Attempts to read a checkpoint that is being replaced under its name."""

_VALUE = re.compile(r"(?P<tag>.+)_(?P<value>-?\d+(\.\d+)?)")


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that verifies, None without one.

    `skipped` are the damaged newer files, each with the reason; `others` are files of another run.
    """

    manifest: Manifest | None
    skipped: tuple[tuple[str, str], ...]
    others: tuple[str, ...] = ()


def newest_in(root: Path, tier: str) -> Manifest | None:
    """Return the newest of a tier that verifies, of releases the highest version; None without one."""
    check_tier(tier)
    _pass_unreadable(root, tier)
    return newest(root, own(root, in_tier(root, tier)))


def newest(root: Path, candidates: Iterable[Manifest]) -> Manifest | None:
    """Return the last of `candidates` that verifies, None without one; warns of damaged ones after it.

    They are moved to quarantine where this process is the one writer. Damaged releases stay where they are:
    others may serve them.
    """
    found, damaged = _last_sound(root, candidates)
    for file, reason in damaged:
        pass_over(root, file, reason)
    return found


def _last_sound(root: Path, candidates: Iterable[Manifest]) -> tuple[Manifest | None, list[tuple[str, str]]]:
    """Return the last of `candidates` that verifies, and the damaged files after it with the reason.

    Raises Undamaged for one that cannot be read here: to take an older one would lose what it holds.
    """
    damaged: list[tuple[str, str]] = []
    for manifest in reversed(list(candidates)):
        try:
            if (sound := verified(root, manifest)) is not None:
                return sound, damaged
        except Undamaged:
            raise
        except CheckpointError as error:
            damaged.append((manifest.file, str(error)))
    return None, damaged


def newest_verified(root: Path, run: str | None = None, index: Index | None = None) -> Found:
    """Return the newest checkpoint under `root` that verifies, of `run` if one is given; nothing is moved.

    `index` has the manifests that were read already. Raises Undamaged for what cannot be read here.
    """
    index = index or Index(root)
    found = _states(index.manifests())
    others = tuple(m.file for m in found if run not in (None, m.run))
    unreadable = index.unreadable()
    sound, damaged = _last_sound(root, of_run(found, run))
    return Found(sound, (*unreadable, *damaged), others)


def of_run(found: Iterable[Manifest], run: str | None) -> list[Manifest]:
    """Return those of `found` that are of a run; all when it is None."""
    return [m for m in found if run in (None, m.run)]


def _states(found: Iterable[Manifest]) -> list[Manifest]:
    """Return those of `found` that hold the state of a training, as averages of weights do not."""
    return [m for m in found if AVERAGE not in m.tags]


def verified(root: Path, manifest: Manifest) -> Manifest | None:
    """Verify a checkpoint and return its manifest; None when its writer deleted it meanwhile.

    When a writer replaces it meanwhile, the new one is verified and returned. Raises CheckpointError with
    the fault.
    """
    mark = (root / manifest.file).with_suffix(".json")
    for _ in range(READ_ATTEMPTS):
        try:
            store.verify(root, manifest)
            return manifest
        except CheckpointError:
            if not os.path.lexists(mark):
                return None
            before, manifest = manifest, read_manifest(mark)
            if (before.run, before.sequence) == (manifest.run, manifest.sequence):
                raise
    raise CheckpointError(f"{root / manifest.file} is replaced each time that it is read: read it later.")


def verdict(root: Path, manifest: Manifest, *, read_only: bool = True) -> str | None:
    """Return what is wrong with a checkpoint; None when it verifies, or its writer deleted it.

    Raises Undamaged for one that cannot be read here, unless `read_only`.
    """
    try:
        verified(root, manifest)
    except CheckpointError as error:
        if isinstance(error, Undamaged) and not read_only:
            raise
        return str(error)
    return None


def is_sound(root: Path, manifest: Manifest) -> bool:
    """Return whether a checkpoint exists and its bytes match its manifest."""
    with contextlib.suppress(CheckpointError):
        return verified(root, manifest) is not None
    return False


def newest_sound(root: Path, run: str | None = None) -> Manifest:
    """Return the newest checkpoint (of `run`, or of the folder's own) that verifies; nothing is moved.

    Raises CheckpointError when there is none.
    """
    there = _states(listing.manifests(root))
    found, _ = _last_sound(root, of_run(there, run) if run else own(root, there))
    if found is None:
        raise CheckpointError(f"{root} holds no checkpoint that verifies.")
    return found


def _pass_unreadable(root: Path, tier: str) -> None:
    for path in listing.manifest_files(root, tier):
        try:
            read_manifest(path)
        except Undamaged:
            raise
        except CheckpointError as error:
            if os.path.lexists(path):  # else its writer deleted it after it was listed
                pass_over(root, f"{tier}/{path.stem}.pt", str(error))


def locate(path: Path) -> tuple[Path, Manifest]:
    """Return the checkpoint root and the verified manifest that a path means.

    A file means itself. `latest.pt` means the newest of its tier that verifies, a role such as
    `best_accuracy.pt` the newest with that role, `best_accuracy_0.92.pt` the one of that value, and
    `production/champion.pt` the release that the journal says. Raises CheckpointError when there is none, or
    when the file is damaged.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100, resolve() would follow a pointer
    root = path.parent.parent
    if path.is_file() and not path.is_symlink():
        return _verified(path)
    if path.parent.name == PRODUCTION and (release := aliases.named(root, path.stem)) is not None:
        store.verify(root, release)
        return root, release
    if path.parent.name in TIERS:
        _pass_unreadable(root, path.parent.name)
        named = [m for m in own(root, in_tier(root, path.parent.name)) if _means(path.stem, m)]
        if named:
            manifest = newest(root, named)
            if manifest is None:
                raise CheckpointError(f"{path} names no intact checkpoint: all were damaged.")
            return root, manifest
    if path.is_file():
        return _verified(path.resolve())
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory: name a file.{foreign.described(path)}")
    raise CheckpointError(f"{path} does not exist.")


def _verified(path: Path) -> tuple[Path, Manifest]:
    mark = path.with_suffix(".json")
    if not mark.exists():
        raise CheckpointError(
            f"{path} has no manifest beside it, so it cannot be verified.{foreign.described(path)}"
        )
    root, manifest = path.parent.parent, read_manifest(mark)
    if path != mark and Path(manifest.file).name != path.name:
        raise CheckpointError(f"{path} is not the file of its manifest, which is {manifest.file}.")
    sound = verified(root, manifest)
    if sound is None:
        raise CheckpointError(f"{path} was deleted while it was read: name another checkpoint.")
    return root, sound


def _means(name: str, manifest: Manifest) -> bool:
    if name == "latest" or name in manifest.tags:
        return True
    match = _VALUE.fullmatch(name)
    if match is None or match["tag"] not in manifest.tags:
        return False
    value = f"{float(match['value']):.4f}"
    return any(f"{v:.4f}" == value for v in manifest.metrics.values())
