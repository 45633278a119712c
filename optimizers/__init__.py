"""Optimizers, learning-rate schedules and pruning that attaches to any of them."""

from optimizers.adam import build_adam
from optimizers.adamw import build_adamw
from optimizers.adamwprune import AdamWPrune
from optimizers.adamwspam import AdamWSPAM, SpamSettings
from optimizers.clip import clip_gradients
from optimizers.groups import param_groups, prunable_weights
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
]
