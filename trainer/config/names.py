"""Names that only a registry knows, checked before any data is read, whether the run will use them or not.

Nothing here imports torch, so that a wrong name is refused at once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from peakpoint.base import registry
from peakpoint.base.text import nearest
from peakpoint.trainer.config import schema as c


def check(config: c.Config) -> None:
    """Raise UserError for a name that is none of its set, with the nearest that is."""
    for kind in ("model", "data", "optimizer", "scheduler"):
        _belongs(kind, getattr(config, kind), registry.table(kind))
    pruning = config.pruning
    if pruning.criterion is not None:
        _one_of("pruning.criterion", pruning.criterion, registry.table("criterion"))
    _one_of("pruning.schedule", pruning.schedule, registry.table("schedule"))
    _one_of("pruning.allocation", pruning.allocation, registry.table("allocation"))


def _belongs(kind: str, chosen: Any, components: Mapping[str, Any]) -> None:
    """The name in a group's settings is one of its names, and its settings are of the class of that name."""
    name = chosen.name
    _one_of(f"{kind}.name", name, components)
    c.require(
        components[name] is type(chosen), f"{kind}.name={name} cannot be set: choose {kind}={name} instead."
    )


def _one_of(key: str, value: str, names: Iterable[str]) -> None:
    known = set(names)
    c.require(value in known, f"{key}={value} is not a choice{nearest(value, known)}")
