"""Real releases of a run's checkpoints."""

from pathlib import Path

from peakpoint.checkpointing.storage import aliases
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.release import release
from peakpoint.deployment.selection import select

FORM = release.Form(format="pt", dtype="float32", compress=False)


def released(run: Path, version: str, step: int, *, alias: str | None = aliases.CHAMPION) -> Manifest:
    """Release the checkpoint of a step, and give it an alias."""
    root = run / "checkpoints"
    manifest = next(c.manifest for c in select.candidates(root) if c.manifest.global_step == step)
    found = release.write(root, release.of(root, manifest, version=version, form=FORM, reason="a test"))
    if alias:
        aliases.assign(root, alias, version, "a test")
    return found


def flip_a_byte(path: Path) -> None:
    """Damage a file."""
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
