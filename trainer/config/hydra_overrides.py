"""Overrides as text: split, quoted, under the keys of today, and which of a record outlive what is typed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from peakpoint.checkpointing.state import differences
from peakpoint.trainer.config.schema import PRUNING

OWN = ("resume", "reproduce", "accept_drift", "retry_failed", "trial")
"""Keys of an attempt alone."""
NAMES = tuple(f"pruning.{kind}" for kind in PRUNING)
"""Keys that name a component, whose options go with it."""
PLACES = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
"""Options of Hydra with a value."""
RENAMED = {
    "pruning.method": "pruning",
    "pruning.variant": "pruning.criterion",
    "optimizer.variant": "pruning.criterion",
    "checkpoint.mirror": "checkpoint.mirror.url",
    "checkpoint.mirror_what": "checkpoint.mirror.what",
    "checkpoint.mirror_keep": "checkpoint.mirror.keep",
    "checkpoint.mirror_queue": "checkpoint.mirror.queue",
    "checkpoint.mirror_wait_s": "checkpoint.mirror.wait_s",
    "checkpoint.mirror_timeout_s": "checkpoint.mirror.timeout_s",
    "checkpoint.policy.interval.epochs": "checkpoint.interval",
    "checkpoint.policy.interval.steps": "checkpoint.interval_steps",
    "checkpoint.policy.wall_clock.minutes": "checkpoint.interval_minutes",
    "tensorboard": "logger",
    "plot": "report",
}
"""The key of an earlier version, or of a value that refers to another -> the one to set."""

_ON, _OFF = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
"""Words for true and false, as a configuration takes them."""


def joined(argv: list[str]) -> list[str]:
    """Return Hydra's options on where its configuration lies as one argument each: a path may have a `=`."""
    rest, found = list(argv), []
    while rest:
        word = rest.pop(0)
        found.append(f"{word}={rest.pop(0)}" if word in PLACES and rest else word)
    return found


def keys(overrides: Iterable[str]) -> tuple[str, ...]:
    """Return the keys that overrides name; other arguments are passed over."""
    return tuple(key for override in overrides if (key := split(override)[0]) is not None)


def outliving(overrides: Sequence[Any], typed: Sequence[str], choices: Mapping[str, Any]) -> list[Any]:
    """Return the recorded overrides that a command line leaves in force.

    A key that is typed again replaces the recorded one. A group that is chosen anew takes with it what was
    set below the earlier choice, whose keys the new one may lack; `choices` are those of the attempt, none in
    an older record.
    """
    kept = [o for o in overrides if split(o)[0] not in (*keys(typed), *OWN)]
    chosen: dict[Any, Any] = {**dict(map(split, overrides)), **choices}
    for override in typed:
        group, choice = split(override)
        if group is None or ("." in group and group not in NAMES) or override.startswith("~"):
            continue
        members = re.findall(r"[\w-]+", choice) if choice.startswith("[") else None
        if members is None and chosen.get(group) != unquote(choice):
            members = []
        if members is not None:
            kept = [o for o in kept if not under(_dotted(o), (group,)) or _belongs(o, group, members)]
    return kept


def _dotted(override: str) -> str:
    return str(split(override)[0]).replace("/", ".")


def _belongs(override: str, group: str, members: Sequence[str]) -> bool:
    """Return whether an override sets something of one of the `members` chosen of a group."""
    name = _dotted(override).removeprefix(group.replace("/", ".")).lstrip(".").partition(".")[0]
    return name in members and not override.startswith("~")


def split(argument: str) -> tuple[str | None, str]:
    """Return (key, value) of an override, without `+` and `~`; (None, ...) when it is not one."""
    match = re.match(r"^(?:\+\+?|~)?([\w./@:-]+?)(?:=(.*))?$", argument, re.DOTALL)
    if match is None or argument.startswith("-") or (match[2] is None and not argument.startswith("~")):
        return None, argument
    return match[1], match[2] or ""


def quote(value: str) -> str:
    """Return a value that Hydra's override grammar takes literally."""
    # Hydra reads a backslash as one, except before a quote and at the end.
    return '"' + re.sub(r'(\\*)("|\Z)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), value) + '"'


def override(run: Path, key: str = "resume") -> str:
    """Return `key`= of a path, as Hydra reads it; a shell needs quotes of its own around it."""
    plain = re.fullmatch(r"[\w./:@%+-]+", str(run))  # Hydra's grammar takes these characters without quotes
    return f"{key}={run if plain else quote(str(run))}"


def unquote(value: str) -> str:
    """Return a value without the quotes that protected it from Hydra's grammar."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return re.sub(rf"(\\+)({value[0]}|\Z)", lambda m: m[1][: len(m[1]) // 2] + m[2], value[1:-1])
    return value


def under(key: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether `key` is one of `prefixes` or lies below one; `a/b` and `a.b` are the same.

    The options of a component lie below its name: pruning.criterion_options below pruning.criterion.
    """
    key, *above = (name.replace("/", ".").replace("_options", "") for name in (key, *prefixes))
    return any(key == p or key.startswith(f"{p}.") for p in above)


def flat(cfg: DictConfig) -> dict[str, Any]:
    """Return the leaves of a configuration by their dotted keys, interpolations as they are written."""
    return differences.flat(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True))


def renamed(override: str) -> str | None:
    """Return the override to use in place of one whose key is not set any more, None for any other."""
    key, value = split(override)
    new = RENAMED.get(str(key))
    if new is None or value.startswith("{"):
        return None
    if key == "tensorboard":
        return f"{new}=[{','.join(_loggers(value))}]" if value.lower() in (*_ON, *_OFF) else None
    return override.replace(str(key), new, 1)


def _loggers(tensorboard: Any) -> list[str]:
    """Return the loggers of a run by the switch of earlier versions."""
    return ["console"] if str(tensorboard).lower() in _OFF else ["console", "tensorboard"]


def current_config(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded configuration with the keys of today, interpolations as they are."""
    found: dict[str, Any] = {}
    for key, value in _with_loggers(_with_regrow(_with_criterion(differences.flat(recorded)))).items():
        new = RENAMED.get(key, key)
        if new != key and value == f"${{{new}}}":
            continue
        *folders, name = new.split(".")
        node = found
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return found


def _with_criterion(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves of a configuration with one criterion, where `method` and two variants were."""
    if "pruning.method" not in leaves:
        return leaves
    method, variant = leaves.pop("pruning.method"), leaves.pop("pruning.variant", None)
    of_optimizer = leaves.pop("optimizer.variant", "bitter7")
    by_state = of_optimizer if str(variant).startswith("${") else variant
    criterion = {"state": by_state or None, "none": None, "regrow": None}.get(method, method)
    return {**leaves, "pruning.criterion": criterion, "pruning.regrow": method == "regrow"}


def _with_regrow(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves of a configuration with the name of a regrowth, where a switch for it was."""
    switch = leaves.get("pruning.regrow")
    return {**leaves, "pruning.regrow": "all" if switch else "none"} if isinstance(switch, bool) else leaves


def _with_loggers(leaves: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves of a configuration with loggers, where a switch for one of them was."""
    if "tensorboard" not in leaves:
        return leaves
    chosen = _loggers(leaves.pop("tensorboard"))
    return {**leaves, **{f"logger.{name}": {} for name in chosen}}
