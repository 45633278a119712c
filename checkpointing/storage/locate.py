"""From a path or a tier to a checkpoint that verifies. Pointers are names here: no symlink is trusted."""

import contextlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from peakpoint.base.errors import CheckpointError, FormatError
from peakpoint.checkpointing.storage import aliases, foreign, quarantine, store
from peakpoint.checkpointing.storage.listing import check_tier, in_tier, own
from peakpoint.checkpointing.storage.manifest import PRODUCTION, TIERS, Manifest, read_manifest
from peakpoint.checkpointing.storage.store import run_of as run_of

log = logging.getLogger("peakpoint")


_VALUE = re.compile(r"(?P<tag>.+)_(?P<value>-?\d+(\.\d+)?)")


def newest_in(root: Path, tier: str) -> Manifest | None:
    """The newest of a tier that verifies, the highest version of the releases; None if there is none."""
    check_tier(tier)
    _pass_unreadable(root, tier)
    return newest(root, own(root, in_tier(root, tier)))


def newest(root: Path, candidates: Iterable[Manifest]) -> Manifest | None:
    """The last of `candidates` that verifies; damaged ones after it are passed over, with a warning.

    They go to quarantine where this process is the one writer. Damaged releases stay where they are: a
    reader does not take away what others serve.
    """
    for manifest in reversed(list(candidates)):
        try:
            sound = store.look(root, manifest)
        except CheckpointError as error:
            pass_over(root, manifest.file, str(error))
        else:
            if sound is not None:
                return sound
    return None


def verdict(root: Path, manifest: Manifest) -> str | None:
    """None when a checkpoint's bytes match its manifest or its writer deleted it, else what is wrong."""
    try:
        store.look(root, manifest)
    except CheckpointError as error:
        return str(error)
    return None


def is_sound(root: Path, manifest: Manifest) -> bool:
    """Whether a checkpoint is there and its bytes match its manifest."""
    with contextlib.suppress(CheckpointError):
        return store.look(root, manifest) is not None
    return False


def newest_sound(root: Path, run: str | None = None) -> Manifest:
    """The newest checkpoint (of `run`, or of the folder's own) that verifies; nothing is moved.

    Raises CheckpointError when there is none.
    """
    found = store.manifests(root)
    for manifest in reversed(store.of_run(found, run) if run else own(root, found)):
        with contextlib.suppress(CheckpointError):
            if (sound := store.look(root, manifest)) is not None:
                return sound
    raise CheckpointError(f"{root} holds no checkpoint that verifies.")


def _pass_unreadable(root: Path, tier: str) -> None:
    for path in sorted((root / tier).glob("*.json")):
        if not path.name.endswith(".config.json"):
            try:
                read_manifest(path)
            except FormatError:
                raise
            except CheckpointError as error:
                if os.path.lexists(path):  # else its writer deleted it after it was listed
                    pass_over(root, f"{tier}/{path.stem}.pt", str(error))


def pass_over(root: Path, file: str, reason: str) -> None:
    """Say that a checkpoint is damaged, and move it to quarantine if this process is the one writer."""
    if file.startswith(f"{PRODUCTION}/") or not quarantine.set_aside(root, [(file, reason)]):
        log.warning("%s is damaged and was passed over: %s", file, reason)
    else:
        log.warning("%s is damaged and was moved to %s: %s", file, root / quarantine.QUARANTINE, reason)


def locate(path: Path) -> tuple[Path, Manifest]:
    """The checkpoint root and the verified manifest that a path means.

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
    sound = store.look(root, manifest)
    if sound is None:
        raise CheckpointError(f"{path} was deleted while it was read.")
    return root, sound


def _means(name: str, manifest: Manifest) -> bool:
    if name == "latest" or name in manifest.tags:
        return True
    match = _VALUE.fullmatch(name)
    if match is None or match["tag"] not in manifest.tags:
        return False
    value = f"{float(match['value']):.4f}"
    return any(f"{v:.4f}" == value for v in manifest.metrics.values())
