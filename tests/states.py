"""Comparing checkpoints bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.manifest import Manifest

ATTEMPT = ("/timestamp",)
"""What differs between two saves of the same state."""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested state with their paths."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from leaves(child, f"{path}/{index}")
    else:
        yield path, value


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, strides included."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
            return False
        # As bytes: NaN equals itself, and 0.0 is not -0.0.
        left, right = (t.contiguous().flatten().clone().view(torch.uint8) for t in (a, b))
        return torch.equal(left, right)
    return type(a) is type(b) and repr(a) == repr(b)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The paths of the leaves that are not the same in two states."""
    left, right = dict(leaves(a)), dict(leaves(b))
    return [
        path
        for path in sorted(left.keys() | right.keys())
        if path not in ATTEMPT and not (path in left and path in right and same(left[path], right[path]))
    ]


def newest(run: Path) -> Manifest:
    """The manifest of a run's newest checkpoint."""
    return listing.manifests(run / "checkpoints")[-1]


def load_newest(run: Path) -> dict[str, Any]:
    """The contents of a run's newest checkpoint."""
    return serialize.load(run / "checkpoints" / newest(run).file)
