"""Rollback to an earlier release: it is verified, then one durable line of the journal switches to it."""

from dataclasses import dataclass
from pathlib import Path

from peakpoint.base.errors import CheckpointError, UnregisteredError
from peakpoint.checkpointing.storage import aliases, listing
from peakpoint.checkpointing.storage.aliases import CHAMPION, Change
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.release import changelog


@dataclass(frozen=True)
class RolledBack:
    """The change of an alias, the file that it now names, and the checks which that file passed."""

    change: Change
    file: str
    checked: tuple[str, ...]


def roll_back(root: Path, to: str | None = None, alias: str = CHAMPION, reason: str = "") -> RolledBack:
    """Set an alias to an earlier release, which is verified first; durable on return.

    `to` None is the previous release of the alias; one that was rolled back from is never chosen again this
    way. Killed at any moment, the alias names the old or the new one. Raises CheckpointError, and changes
    nothing, when that release is missing or damaged or has the alias already, or when another process sets
    the alias meanwhile.
    """
    aliases.check(alias)
    history = list(aliases.changes(root, alias))
    now = history[-1].version if history else None
    version = to if to is not None else aliases.before(history)
    if version is None:
        raise CheckpointError(f"{alias} has no earlier release: name one with --to; {_released(root)}.")
    if version == now:
        raise CheckpointError(f"{alias} is {version} already.")
    known = listing.by_version(root)
    if version not in known:
        raise CheckpointError(f"{aliases.no_release(root, version)}; {_released(root)}.")
    manifest = known[version]
    try:
        checked = verified(root, manifest)
    except CheckpointError as error:
        raise CheckpointError(f"{error} {alias} stays {now or 'as it was'}.") from None
    change = aliases.assign(root, alias, version, reason, rolled_back=history)
    assert change is not None
    changelog.refresh(root)
    return RolledBack(change, manifest.file, checked)


def _released(root: Path) -> str:
    """Return a phrase with the existing releases."""
    versions = ", ".join(listing.by_version(root))
    return f"there are {versions}" if versions else "there is none"


def verified(root: Path, manifest: Manifest) -> tuple[str, ...]:
    """Verify a release: its digests, its network, and its golden outputs if it has them.

    Returns the names of the checks; a network that is not registered is not run. Raises CheckpointError.
    """
    from peakpoint.deployment.inference import golden, network
    from peakpoint.deployment.release import release  # late, so that refusals need no torch

    try:
        if golden.has(manifest):
            release.verify(root, manifest, run=True)
            return "digests", "network", "golden outputs"
        release.verify(root, manifest)
        network.load(root, manifest)
    except UnregisteredError:  # raised once the digests are verified
        return ("digests",)
    return "digests", "network"
