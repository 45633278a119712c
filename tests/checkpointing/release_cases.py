"""Releases that the library wrote: small networks that their own config rebuilds."""

from pathlib import Path

import torch

from peakpoint import CheckpointManager
from peakpoint.base.semver import key
from peakpoint.checkpointing.storage import aliases
from peakpoint.deployment.inference import network
from tests.checkpointing.publish_cases import DESCRIPTION

VERSIONS = ("1.0.0", "1.1.0", "1.2.0", "1.10.0")


def released(root: Path, *versions: str, config: dict | None = None) -> Path:
    """The root with releases of these versions, whose weights and accuracy differ."""
    manager = CheckpointManager(root)
    for version in versions:
        model = network.build(DESCRIPTION)
        number = key(version).minor
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.01 * (number + 1))
        manager.save_production_checkpoint(
            model,
            version=version,
            config=config or DESCRIPTION.config(),
            metrics={"accuracy": 0.5 + number / 100},
            model_card={},
        )
    manager.close()
    return root


def gone(root: Path, version: str) -> None:
    """Delete a release by hand."""
    for path in (root / "production").glob(f"*_v{version}.*"):
        path.unlink()


def history(root: Path, alias: str = "champion") -> list[str | None]:
    """What an alias named, in order."""
    return [change.version for change in aliases.changes(root, alias)]
