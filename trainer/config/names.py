"""Names that only a registry knows, checked before any data is read, whether the run will use them or not.

Nothing here imports torch, so that a wrong name is refused at once.
"""

from collections.abc import Iterable, Mapping

from peakpoint.base.text import nearest
from peakpoint.optimizers.pruning.criteria import ALLOCATIONS, CRITERIA, SCHEDULES
from peakpoint.trainer.config import schema as c
from peakpoint.trainer.data.sources import find, sources

Schemas = Mapping[str, Mapping[str, type]]
"""The class of the settings by group and by name."""


def check(config: c.Config, schemas: Schemas) -> None:
    """Raise UserError for a name that is none of its set, with the nearest that is."""
    find(config.data.name)
    classes = {**schemas, "data": {source.name: source.settings for source in sources()}}
    for group in ("model", "data", "optimizer", "scheduler"):
        _belongs(group, getattr(config, group), classes[group])
    pruning, optimizer = config.pruning, config.optimizer
    by_state = [name for name, record in CRITERIA.items() if record.needs_moments]
    if isinstance(optimizer, c.AdamWPrune):
        _one_of("optimizer.variant", optimizer.variant, by_state)
    _one_of("pruning.method", pruning.method, {"state", *c.DENSE, *CRITERIA}.difference(by_state))
    _one_of("pruning.schedule", pruning.schedule, SCHEDULES)
    _one_of("pruning.allocation", pruning.allocation, ALLOCATIONS)
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


def _belongs(group: str, chosen: object, classes: Mapping[str, type]) -> None:
    """The name in a group's settings is one of its names, and its settings are of the class of that name."""
    if type(chosen) not in classes.values():  # of a plugin
        return
    name = str(chosen.name)  # type: ignore[attr-defined]
    _one_of(f"{group}.name", name, classes)
    c.require(
        classes[name] is type(chosen), f"{group}.name={name} cannot be set: choose {group}={name} instead."
    )


def _one_of(key: str, value: str, names: Iterable[str]) -> None:
    known = set(names)
    c.require(value in known, f"{key}={value} is not a choice{nearest(value, known)}")
