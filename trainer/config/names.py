"""Names that only a registry knows, checked before any data is read, whether the run will use them or not.

Nothing here imports torch, so that a wrong name is refused at once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from peakpoint.base import registry
from peakpoint.base.text import nearest
from peakpoint.optimizers.catalogue.adam import AdamWPrune
from peakpoint.trainer.config import schema as c


def check(config: c.Config) -> None:
    """Raise UserError for a name that is none of its set, with the nearest that is."""
    for kind in ("model", "data", "optimizer", "scheduler"):
        _belongs(kind, getattr(config, kind), registry.table(kind))
    pruning, optimizer = config.pruning, config.optimizer
    criteria = registry.table("criterion")
    by_state = [name for name, criterion in criteria.items() if criterion.needs]
    if isinstance(optimizer, AdamWPrune):
        _one_of("optimizer.variant", optimizer.variant, by_state)
    _one_of("pruning.method", pruning.method, {"state", *c.DENSE, *criteria}.difference(by_state))
    _one_of("pruning.schedule", pruning.schedule, registry.table("schedule"))
    _one_of("pruning.allocation", pruning.allocation, registry.table("allocation"))
    if pruning.variant:
        _one_of("pruning.variant", pruning.variant, by_state)
    if pruning.method == "state":
        c.require(
            bool(pruning.variant), "pruning.method=state needs a pruning.variant: choose pruning=state."
        )
    else:
        c.require(
            not pruning.variant,
            f"pruning.variant={pruning.variant} has no effect with pruning.method={pruning.method}: choose "
            f"pruning=state, or pruning={pruning.method} without a variant.",
        )


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
