"""The policies by name, and by the class of their settings. A plugin adds its own with `register`."""

from collections.abc import Callable
from typing import Any

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.policies.best import Best, BestSettings
from peakpoint.checkpointing.policies.early_stopping import EarlyStopping, EarlyStoppingSettings
from peakpoint.checkpointing.policies.interval import Interval, IntervalSettings
from peakpoint.checkpointing.policies.sparsity import Sparsity, SparsitySettings
from peakpoint.checkpointing.policies.top_k import TopK, TopKSettings
from peakpoint.checkpointing.policies.wall_clock import WallClock, WallClockSettings
from peakpoint.checkpointing.policy import Policy

SETTINGS: dict[str, type] = {}
"""Name of a policy in the configuration -> its settings class."""

_POLICIES: dict[type, Callable[[Any], Policy]] = {}


def register(name: str, settings_class: type, policy_class: Callable[[Any], Policy]) -> None:
    """Make a policy known under `name`; it is built as `policy_class(settings)`.

    Raises CheckpointError when another policy has the name or the settings class.
    """
    if SETTINGS.get(name, settings_class) is not settings_class:
        raise CheckpointError(f"A checkpoint policy named {name} exists: give this one another name.")
    if _POLICIES.get(settings_class, policy_class) is not policy_class:
        raise CheckpointError(
            f"{settings_class.__name__} belongs to another checkpoint policy: give {name} its own settings."
        )
    SETTINGS[name] = settings_class
    _POLICIES[settings_class] = policy_class


def build(settings: object) -> Policy:
    """The policy that these settings belong to. Raises CheckpointError for settings of no policy."""
    try:
        policy_class = _POLICIES[type(settings)]
    except KeyError:
        raise CheckpointError(
            f"No checkpoint policy takes settings of type {type(settings).__name__}; there are: "
            f"{', '.join(sorted(SETTINGS))}. A plugin registers its own with register()."
        ) from None
    return policy_class(settings)


register("interval", IntervalSettings, Interval)
register("wall_clock", WallClockSettings, WallClock)
register("best", BestSettings, Best)
register("top_k", TopKSettings, TopK)
register("sparsity", SparsitySettings, Sparsity)
register("early_stopping", EarlyStoppingSettings, EarlyStopping)
