"""Helpers of the commands: finding, verifying and printing checkpoints."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.lock import one_writer
from peakpoint.base.text import readable
from peakpoint.checkpointing.storage import foreign, listing
from peakpoint.checkpointing.storage.listing import (
    Index,
    is_root,
    no_checkpoints,
    releases,
    unreadable_releases,
)
from peakpoint.checkpointing.storage.listing import run_of as run_of
from peakpoint.checkpointing.storage.locate import newest_sound as newest_sound
from peakpoint.checkpointing.storage.locate import verdict as verdict
from peakpoint.checkpointing.storage.manifest import PRODUCTION, SUFFIXES, TIERS, Manifest, read_manifest
from peakpoint.deployment.release.publish import settled


def checkpoint_root(path: Path) -> Path:
    """Return the checkpoint folder of a run directory, or the folder itself.

    Raises CheckpointError, which names the best run of a folder of several, such as that of a sweep.
    """
    try:
        return listing.checkpoint_root(path)
    except CheckpointError:
        refuse_several(path)
        raise


def refuse_several(path: Path) -> None:
    """Raise CheckpointError for a folder of several runs, such as that of a sweep: it names the best one."""
    from peakpoint.trainer.reports import study  # late: Hydra takes a moment

    try:
        found = [] if study.is_run(path) else study.ranked(study.read_results([path]))
    except UserError:
        return
    if not found:
        return
    best = next((each for each in found if each.state == "finished" and each.metric), None)
    which = f"the best by {best.metric} is {best.run}" if best else f"one is {found[0].run}"
    raise CheckpointError(f"{path} holds {len(found)} runs, and one is needed: {which}.")


def checkpoint_roots(path: Path) -> list[Path]:
    """Return the checkpoint folders of a run, or of all runs below a folder. Raises CheckpointError."""
    with contextlib.suppress(CheckpointError):
        return [listing.checkpoint_root(path)]
    found = []
    for folder, below, _ in os.walk(path):
        here = Path(folder)
        if is_root(here) and (here.name == "checkpoints" or _has_manifests(here)):
            found.append(here)
            below.clear()
    if not found:
        raise CheckpointError(no_checkpoints(path))
    return sorted(found)


def _has_manifests(root: Path) -> bool:
    # Other programs have folders named `training` too.
    return any(True for tier in TIERS for _ in (root / tier).glob("*.json"))


def everything(root: Path, *, read_only: bool = True) -> tuple[list[Manifest], list[tuple[str, str]]]:
    """Return the checkpoints with a readable manifest, oldest first, then the releases by version.

    The second list has the files whose manifests cannot be read, each with the reason; those that nothing
    shows to be damaged raise Undamaged unless `read_only`.
    """
    index = Index(root)
    found = [*index.manifests(), *releases(root)]
    unreadable = index.unreadable(read_only=read_only)
    return found, [*unreadable, *unreadable_releases(root, read_only=read_only)]


@contextlib.contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the locks of both the trainer (the run) and the library (the folder). Raises CheckpointError."""
    with contextlib.ExitStack() as stack:
        for folder in sorted({run_of(root), root}):
            stack.enter_context(one_writer(folder))
        yield


def manifest_of(path: Path) -> tuple[Path, Manifest]:
    """Return the checkpoint root and the manifest of a file or a pointer. Raises CheckpointError."""
    try:
        file = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop of links
        raise CheckpointError(f"{path} does not exist.") from None
    if file.is_dir():
        refuse_several(path)
        raise CheckpointError(f"{path} is a directory: name a file.{foreign.described(path)}")
    if not file.with_suffix(".json").exists():
        raise CheckpointError(no_manifest(path))
    return file.parent.parent, read_manifest(file.with_suffix(".json"))


def contents(path: Path) -> tuple[dict[str, Any], Manifest | None]:
    """Return the contents of a file, verified where it has a manifest, and the manifest.

    Imports torch. Raises CheckpointError.
    """
    from peakpoint.checkpointing.state import serialize

    manifest = None
    if path.resolve().with_suffix(".json").exists():
        root, manifest = manifest_of(path)
        if wrong := verdict(root, manifest):
            raise CheckpointError(wrong)
    try:
        return serialize.load(path), manifest
    except CheckpointError as error:
        raise CheckpointError(f"{error}{foreign.described(path)}") from None


def no_manifest(path: Path) -> str:
    """Return the message for a file without a manifest, with its recognised kind."""
    return f"{path} has no manifest beside it, so it cannot be verified.{foreign.described(path)}"


def check_there(*paths: Path | None) -> None:
    """Raise CheckpointError for the first of `paths` that does not exist; None is skipped."""
    for path in paths:
        if path is not None and not os.path.lexists(path):
            raise CheckpointError(f"{path} does not exist.")


def orphans(root: Path) -> list[str]:
    """Return the checkpoint files under `root` without a manifest, as `tier/name.pt`, pointers excluded."""
    with settled(root):  # a release that is being written has none yet
        return [
            f"{tier}/{path.name}"
            for tier in TIERS
            for path in sorted(p for end in SUFFIXES for p in (root / tier).glob(f"*{end}"))
            if not path.is_symlink() and not _is_described(path)
        ]


def _is_described(path: Path) -> bool:
    mark = path.with_suffix(".json")
    if path.parent.name != PRODUCTION or not mark.exists():
        return mark.exists()
    try:
        return Path(read_manifest(mark).file).name == path.name  # which of the two suffixes it is of
    except CheckpointError:
        return True  # reported as unreadable


def as_json(root: Path, manifest: Manifest, verified: bool | None) -> dict[str, Any]:
    """Return the facts of a manifest with its root; `verified` None means not checked."""
    return {**asdict(manifest), "root": str(root), "verified": verified}


def print_json(value: Any) -> None:
    """Print strict JSON: NaN and infinity as words, other types by their name."""
    print(json.dumps(readable(value), indent=2, allow_nan=False))
