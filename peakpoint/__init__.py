"""Train, prune, and never lose the peak. The public names; torch is imported when it is first needed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peakpoint.base.errors import CheckpointError, PeakpointError, UserError
    from peakpoint.base.registry import register
    from peakpoint.checkpointing.state.serialize import load
    from peakpoint.deployment.inference.network import load_model
    from peakpoint.library.loading import load_checkpoint, resume_training
    from peakpoint.library.manager import CheckpointManager

__all__ = [
    "CheckpointError",
    "CheckpointManager",
    "PeakpointError",
    "UserError",
    "load",
    "load_checkpoint",
    "load_model",
    "register",
    "resume_training",
]

_HOMES = {
    "CheckpointError": "base.errors",
    "CheckpointManager": "library.manager",
    "PeakpointError": "base.errors",
    "UserError": "base.errors",
    "load": "checkpointing.state.serialize",
    "load_checkpoint": "library.loading",
    "load_model": "deployment.inference.network",
    "register": "base.registry",
    "resume_training": "library.loading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that torch is not imported before."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names too, for completion and the API pages."""
    return sorted({*globals(), *__all__})
