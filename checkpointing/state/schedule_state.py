"""A learning rate schedule's saved state put into a living one, of the types that it has itself.

torch takes whatever it is given for the attributes of a schedule, and fails at a later step.
"""

from collections.abc import Mapping
from numbers import Real
from typing import Any

from torch import Tensor

from peakpoint.base.errors import restoring


def load(scheduler: Any, saved: Mapping[str, Any]) -> None:
    """Load a state. Raises CheckpointError for one that no such schedule saved."""
    with restoring("scheduler_state_dict"):
        own = scheduler.state_dict()
        for name, value in saved.items():
            if name in own and not _alike(own[name], value):
                raise TypeError(f"{name} is of type {type(value).__name__}, not {type(own[name]).__name__}")
            if name not in own and hasattr(scheduler, name):
                raise ValueError(f"{name} is nothing that it saves")
        scheduler.load_state_dict(dict(saved))


def _alike(own: Any, value: Any) -> bool:
    if own is None or value is None:
        return True
    for kind in (str, Real | Tensor, Mapping):
        if isinstance(own, kind):
            return isinstance(value, kind)
    if isinstance(own, list | tuple):
        return isinstance(value, list | tuple) and all(_alike(own[0], each) for each in value if own)
    return True
