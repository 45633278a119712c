"""From a path or a tier to a checkpoint that verifies. Pointers are names here: no symlink is trusted."""

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from checkpointing import bounded, foreign, quarantine, store, versions
from checkpointing.errors import CheckpointError, FormatError
from checkpointing.manifest import SUFFIXES, Manifest, read_manifest
from checkpointing.policy import MILESTONE, TRAINING
from checkpointing.store import run_of as run_of

log = logging.getLogger("peakpoint")

PRODUCTION = "production"
TIERS = (TRAINING, MILESTONE, PRODUCTION)

LIBRARY = "library-"
"""How the runs of the library begin, so that a trainer's in the same directory are left alone."""

_VALUE = re.compile(r"(?P<tag>.+)_(?P<value>-?\d+(\.\d+)?)")


def is_root(path: Path) -> bool:
    """Whether a folder holds checkpoints by tier."""
    return any((path / tier).is_dir() for tier in TIERS)


def checkpoint_root(path: Path) -> Path:
    """The checkpoint folder of a run directory, or the folder itself. Raises CheckpointError."""
    for root in (path / "checkpoints", path):
        if is_root(root):
            return root
    raise CheckpointError(no_checkpoints(path))


def no_checkpoints(path: Path) -> str:
    """The line for a path that is no run, which says what it is."""
    if not os.path.lexists(path):
        return f"{path} does not exist."
    return f"{path} has no checkpoints: name a run directory, such as outputs/RUN.{foreign.described(path)}"


def run_id(root: Path) -> str | None:
    """The run that a checkpoint folder belongs to by its run.json, or None without one."""
    with contextlib.suppress(CheckpointError, KeyError):
        return str(bounded.read_json(run_of(root) / "run.json")["run"])
    return None


def own(root: Path, found: Iterable[Manifest]) -> list[Manifest]:
    """Those of `found` that are of the run whose folder this is, of the library, or releases.

    Checkpoints of another run that were copied to it are passed over, with a warning.
    """
    found, run = list(found), run_id(root)
    mine = [m for m in found if run in (None, m.run) or m.tier == PRODUCTION or m.run.startswith(LIBRARY)]
    if len(mine) < len(found):
        log.warning("%s", of_others(root, [m.file for m in found if m not in mine]))
    return mine


def of_others(root: Path, files: Sequence[str]) -> str:
    """What to tell of checkpoints in the folder of a run that are of another run."""
    names = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return f"Of another run than that of {run_of(root)}, and passed over: {names}."


def version_of(manifest: Manifest) -> str:
    """The version of a release. Raises CheckpointError when its manifest names none, or another's."""
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
    """The checkpoints of a tier whose file is there: oldest first, releases by version."""
    check_tier(tier)
    everything = releases(root) if tier == PRODUCTION else store.manifests(root)
    found = [m for m in everything if m.tier == tier]
    return [m for m in found if (root / m.file).exists()]


def described_by(mark: Path) -> Path:
    """The file beside a manifest that may not be readable."""
    there = [mark.with_suffix(end) for end in SUFFIXES if mark.with_suffix(end).exists()]
    return there[0] if there else mark.with_suffix(".pt")


def releases(root: Path) -> list[Manifest]:
    """Every readable release, lowest version first."""
    found = []
    for path in (root / PRODUCTION).glob("*.json"):
        if not path.name.endswith(".config.json"):
            with contextlib.suppress(CheckpointError):
                manifest = read_manifest(path)
                found.append((versions.key(version_of(manifest)), manifest))
    return [manifest for _, manifest in sorted(found, key=lambda pair: pair[0])]


def unreadable_releases(root: Path, *, only_looks: bool = False) -> list[tuple[str, str]]:
    """The files under `production` whose manifests cannot be read or name no release, with the reasons.

    Raises FormatError as Index.unreadable does.
    """
    found = []
    for path in sorted((root / PRODUCTION).glob("*.json")):
        if not path.name.endswith(".config.json"):
            try:
                versions.key(version_of(read_manifest(path)))
            except CheckpointError as error:
                if isinstance(error, FormatError) and not only_looks:
                    raise
                found.append((f"{PRODUCTION}/{described_by(path).name}", str(error)))
    return found


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
    if path.parent.name == PRODUCTION:
        from checkpointing import aliases  # late: it lists releases

        if (release := aliases.named(root, path.stem)) is not None:
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
