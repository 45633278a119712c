"""The other files of a checkpoint: those beside a release's weights, each with its digest in the manifest."""

from pathlib import Path, PurePosixPath

from peakpoint.base.digests import matches
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.checkpointing.storage.manifest import Manifest


def listed(manifest: Manifest) -> dict[str, str]:
    """The digest of each file by its path from the checkpoint root.

    Raises CheckpointError for a path that leaves the root.
    """
    found = dict(manifest.companions or {})
    for name in found:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise CheckpointError(f"{manifest.file} names {name!r} among its files: it leaves its folder.")
    return found


def check(root: Path, manifest: Manifest, threads: int) -> None:
    """Raise CheckpointError unless every companion is as its digest says."""
    for name, digest in listed(manifest).items():
        path = root / name
        try:
            if not matches(path, digest, threads):
                raise CheckpointError(f"{path} does not match its digest in the manifest: its bytes changed.")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {os_reason(error)}.") from None
