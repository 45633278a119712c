"""Checkpoints: what to keep, kept safely. Works without the trainer, and imports torch only when needed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpointing.api import CheckpointManager
    from checkpointing.codec import load
    from checkpointing.errors import CheckpointError
    from checkpointing.loading import load_checkpoint, resume_training
    from checkpointing.network import load_model

__all__ = ["CheckpointError", "CheckpointManager", "load", "load_checkpoint", "load_model", "resume_training"]

_HOMES = {
    "CheckpointError": "errors",
    "CheckpointManager": "api",
    "load": "codec",
    "load_checkpoint": "loading",
    "load_model": "network",
    "resume_training": "loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that torch is not imported before."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
