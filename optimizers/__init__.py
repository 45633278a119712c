"""Optimizers, learning-rate schedules and pruning that attaches to any of them. Imports torch when needed."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peakpoint.optimizers.adam import build_adam
    from peakpoint.optimizers.adamw import build_adamw
    from peakpoint.optimizers.adamwprune import AdamWPrune
    from peakpoint.optimizers.adamwspam import AdamWSPAM, SpamSettings
    from peakpoint.optimizers.clip import clip_gradients
    from peakpoint.optimizers.groups import param_groups, prunable_weights
    from peakpoint.optimizers.kinds import Zeros, zeros
    from peakpoint.optimizers.pruning.criterion import Criterion
    from peakpoint.optimizers.pruning.lowest_k import select_lowest
    from peakpoint.optimizers.pruning.pruner import Pruner
    from peakpoint.optimizers.pruning.settings import PruneSettings
    from peakpoint.optimizers.schedule import constant, cosine, learning_rate_schedule, multistep, one_cycle
    from peakpoint.optimizers.sgd import build_sgd

__all__ = [
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
    "AdamWPrune": "adamwprune",
    "AdamWSPAM": "adamwspam",
    "Criterion": "pruning.criterion",
    "PruneSettings": "pruning.settings",
    "Pruner": "pruning.pruner",
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
    "select_lowest": "pruning.lowest_k",
    "zeros": "kinds",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that names are known without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
