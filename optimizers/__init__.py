"""Optimizers, learning-rate schedules and pruning that attaches to any of them. Imports torch when needed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizers.adam import build_adam
    from optimizers.adamw import build_adamw
    from optimizers.adamwprune import AdamWPrune
    from optimizers.adamwspam import AdamWSPAM, SpamSettings
    from optimizers.clip import clip_gradients
    from optimizers.groups import param_groups, prunable_weights
    from optimizers.kinds import Zeros, zeros
    from optimizers.pruner import Pruner
    from optimizers.schedule import constant, cosine, learning_rate_schedule, multistep, one_cycle
    from optimizers.selection import select_lowest
    from optimizers.sgd import build_sgd
    from optimizers.sparsity import ALLOCATIONS, CRITERIA, SCHEDULES, Criterion, PruneSettings

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "SCHEDULES",
    "AdamWPrune",
    "AdamWSPAM",
    "Criterion",
    "PruneSettings",
    "Pruner",
    "SpamSettings",
    "Zeros",
    "build_adam",
    "build_adamw",
    "build_sgd",
    "clip_gradients",
    "constant",
    "cosine",
    "learning_rate_schedule",
    "multistep",
    "one_cycle",
    "param_groups",
    "prunable_weights",
    "select_lowest",
    "zeros",
]

_HOMES = {
    "ALLOCATIONS": "sparsity",
    "AdamWPrune": "adamwprune",
    "AdamWSPAM": "adamwspam",
    "CRITERIA": "sparsity",
    "Criterion": "sparsity",
    "PruneSettings": "sparsity",
    "Pruner": "pruner",
    "SCHEDULES": "sparsity",
    "SpamSettings": "adamwspam",
    "Zeros": "kinds",
    "build_adam": "adam",
    "build_adamw": "adamw",
    "build_sgd": "sgd",
    "clip_gradients": "clip",
    "constant": "schedule",
    "cosine": "schedule",
    "learning_rate_schedule": "schedule",
    "multistep": "schedule",
    "one_cycle": "schedule",
    "param_groups": "groups",
    "prunable_weights": "groups",
    "select_lowest": "selection",
    "zeros": "kinds",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that names are known without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
