"""What a resumed command line changes of the configuration, and what it may not."""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from peakpoint.base.errors import UserError
from peakpoint.trainer.config.hydra_overrides import OWN, flat, under

FROZEN = ("model", "data", "seed", "batch_size", "optimizer.name")
"""What a resumed run may not change: it would no longer be the same run."""
FREE = ("data.root",)
"""What may change below a frozen key."""


def check_changes(cfg: DictConfig, saved: DictConfig, typed: tuple[str, ...]) -> list[str]:
    """Compare the composed configuration with the saved one; returns what the command line changed.

    Raises UserError for a change that is not allowed, or that the command line does not name: the files in
    conf/ may have changed since.
    """
    old, new = flat(saved), flat(cfg)
    wanted = asked(cfg, saved, typed)
    changed = _changed(cfg, saved)
    drift = [key for key in changed if key not in wanted]
    if drift and not cfg.accept_drift:
        key = drift[0]
        raise UserError(
            f"{key} was {old.get(key)} and is {new.get(key)} now, and the command does not name it: conf/ "
            f"has changed since. Add {key}={old.get(key)} to keep it, or accept_drift=true."
        )
    lines = []
    for key in changed:
        gone = _gone(key, new)
        lines.append(f"{gone}: removed" if gone else f"{key}: {old.get(key)} -> {new.get(key)}")
    return list(dict.fromkeys(lines))


def _gone(key: str, new: Mapping[str, Any]) -> str | None:
    """What `key` went with: the first node above it that the new configuration lacks."""
    names = key.split(".")
    above = (".".join(names[:count]) for count in range(1, len(names)))
    return next((node for node in above if not any(under(left, (node,)) for left in new)), None)


def asked(cfg: DictConfig, saved: DictConfig, typed: Sequence[str]) -> list[str]:
    """The keys that a command line changed. Raises UserError for a change that is not allowed."""
    old, new = flat(saved), flat(cfg)
    changed = _changed(cfg, saved)
    for key in sorted(changed, key=lambda key: not key.endswith(".name")):
        if under(key, FROZEN) and not under(key, FREE):
            raise UserError(
                f"{key} was {old.get(key)} in this run and is {new.get(key)} now: a resumed run keeps its "
                "model, data, seed, batch size and optimizer. Start a new run instead."
            )
    # A group or an experiment that was named may change anything.
    free = bool({"experiment", "optimizer"} & set(typed))
    return [key for key in changed if free or under(key, tuple(typed))]


def _changed(cfg: DictConfig, saved: DictConfig) -> list[str]:
    """The keys whose values differ, less the settings that only one of the two versions of Peakpoint has."""
    old, new = flat(saved), flat(cfg)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [key for key in changed if not under(key, OWN) and not _of_one_version(key, cfg, saved)]


def _of_one_version(key: str, cfg: DictConfig, saved: DictConfig) -> bool:
    """Whether a key is a setting that the other configuration cannot have: one of its typed node lacks it."""
    new: Any = cfg
    old: Any = saved
    for name in key.split("."):
        if not isinstance(new, DictConfig) or not isinstance(old, DictConfig):
            return False
        if (name in new) != (name in old):
            return is_dataclass(OmegaConf.get_type(new))
        new, old = new._get_node(name), old._get_node(name)
    return False
