"""Symlinks in the folder of releases, for people: no code path depends on them."""

import contextlib
from pathlib import Path

from peakpoint.base.files import point
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.manifest import PRODUCTION, SUFFIXES, Manifest


def latest_release(root: Path) -> None:
    """Let `production/latest.pt` (or .safetensors) name the highest version: for people."""
    found = listing.releases(root)
    if found:
        _name(root, "latest", found[-1])


def _name(root: Path, alias: str, manifest: Manifest) -> None:
    """Let a symlink in `production` name a release, under the suffix of its file and no other."""
    file = Path(manifest.file)
    link = root / PRODUCTION / f"{alias}{file.suffix}"
    if not link.is_symlink() or str(link.readlink()) != file.name:
        point(link, file.name)
    for suffix in set(SUFFIXES) - {file.suffix}:
        link = root / PRODUCTION / f"{alias}{suffix}"
        with contextlib.suppress(OSError):
            if link.is_symlink():
                link.unlink()


def links_of(root: Path, alias: str, version: str | None) -> dict[Path, str | None]:
    """The symlinks of an alias for people, and what each is to name; None: it is not to be there."""
    release = listing.by_version(root).get(version or "")
    file = Path(release.file) if release else None
    return {
        root / PRODUCTION / f"{alias}{end}": file.name if file and file.suffix == end else None
        for end in SUFFIXES
    }


def alias(root: Path, name: str, version: str | None) -> None:
    """Let the symlink `production/<alias>.pt` follow; no code path depends on it."""
    for link, file in links_of(root, name, version).items():
        if file is not None and (link.is_symlink() or not link.exists()):
            point(link, file)
        elif file is None and link.is_symlink():
            with contextlib.suppress(OSError):
                link.unlink()
