"""Check recorded command lines: they may choose among conf/ by plain names and set plain values.

A run directory, or its copy in a mirror, may come from anybody, and Hydra executes what a composed
configuration asks for: hydra.callbacks, or a file outside conf/ that `experiment=../x` would read. So every
command that composes from a record asks here. An override that reads the environment, imports code or uploads
files counts only when the user types it again.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base.errors import UserError
from peakpoint.trainer.config.hydra_overrides import renamed, split, unquote

CODE = ("plugins",)
"""Keys whose value is imported."""
SENDS = ("checkpoint.mirror.url", "search.storage", "logger.wandb.mode", "logger.mlflow.tracking_uri")
"""Keys whose value is a place that files, numbers or the results of trials are sent to."""
VARIANTS = ("pruning.variant", "optimizer.variant")
"""Keys of earlier versions, which a criterion has replaced."""

LONGEST, MOST = 4096, 1000
"""Characters of an override, and overrides of an attempt."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9][A-Za-z0-9_-]*)*")
_CHOICE = re.compile(r"[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*")
"""Names an option, perhaps in a folder of its group, and nothing outside it."""


class _Kind(Enum):
    PLAIN, WORD, FOREIGN = range(3)


def overrides(attempt: Mapping[str, Any]) -> list[str]:
    """Return the overrides of an attempt, each by the name that its key has now.

    An empty variant is left out: methods without variants demanded it, and a criterion is never empty.
    """
    return [renamed(o) or o for o in attempt["overrides"] if not _is_empty_variant(o)]


def _is_empty_variant(override: str) -> bool:
    key, value = split(override)
    return key in VARIANTS and unquote(value) in ("", "null") and not override.startswith("~")


def taken(overrides: Sequence[Any], where: Path) -> list[str]:
    """Return the overrides of an attempt, less those that were typed again, which its record in a file holds.

    Raises UserError for one that wants more than to choose and to set, and for those that need the user's
    word, saying what to add to the command.
    """
    if len(overrides) > MOST:
        raise UserError(f"{where} holds {len(overrides)} overrides, which are too many for a run.")
    for override in overrides:
        if _kind(override) is _Kind.FOREIGN:
            raise UserError(
                f"{where} holds {str(override)[:200]!r}, which is not an override of a run: a record chooses "
                "among conf/ by name and sets plain values."
            )
    if asked := needs_word(overrides):
        raise UserError(
            f"This run used {' '.join(asked)}. Code is imported, the environment read and copies are sent "
            f"only at your word: add {shlex.join(asked)} to the command."
        )
    return list(overrides)


def values_of(word: str) -> list[str]:
    """Return an override of a sweep as one override for each of its values, any other as it is.

    One that does not list its values, or has too many, stays whole, and `taken` refuses it.
    """
    try:
        parsed = OverridesParser.create().parse_override(word)
        value: Any = parsed.value()
        if isinstance(value, IntervalSweep):
            return [f"{parsed.get_key_element()}={bound}" for bound in (value.start, value.end)]
        if not isinstance(value, ChoiceSweep | RangeSweep) or value.shuffle:
            return [word]
        values = list(islice(parsed.sweep_string_iterator(), MOST + 1))
    except (HydraException, OmegaConfBaseException, ValueError, ArithmeticError, RecursionError):
        return [word]
    return [f"{parsed.get_key_element()}={value}" for value in values] if len(values) <= MOST else [word]


def needs_word(overrides: Sequence[Any]) -> list[str]:
    """Return those overrides of an attempt that a command which resumes it must name again."""
    return [o for o in overrides if _kind(o) is _Kind.WORD]


def data_root(overrides: Sequence[Any]) -> str | None:
    """Return the data.root that an attempt overrides and `taken` takes; None where conf/ decides."""
    found = None
    for override in overrides:
        parsed = OverridesParser.create().parse_override(override)
        values = dict(_leaves(parsed.key_or_group, parsed.value()))
        found = values.get("data.root", found)
    return None if found is None else str(found)


def _kind(override: Any) -> _Kind:
    if not isinstance(override, str) or len(override) > LONGEST or not override.isprintable():
        return _Kind.FOREIGN
    try:
        parsed = OverridesParser.create().parse_override(override)
        values = list(_leaves(parsed.key_or_group, parsed.value()))
    except (HydraException, OmegaConfBaseException, ValueError, ArithmeticError, RecursionError):
        return _Kind.FOREIGN
    key = parsed.key_or_group
    if parsed.package is not None or parsed.is_sweep_override() or not _KEY.fullmatch(key):
        return _Kind.FOREIGN
    if re.split("[./]", key)[0] == "hydra" or not all(_is_plain(name, value) for name, value in values):
        return _Kind.FOREIGN
    if any(_needs_word(name, value) for name, value in values):
        return _Kind.WORD
    # Hydra takes a key without a dot for a group wherever it finds a folder of that name.
    names = [value for name, value in values if "." not in key and name == key.replace("/", ".")]
    return _Kind.PLAIN if all(_CHOICE.fullmatch(n) for n in names if isinstance(n, str)) else _Kind.FOREIGN


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the values in an override by their dotted keys; those of a list under that of the list."""
    key = key.replace("/", ".")
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(f"{key}.{name}", child)
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(key, child)
    else:
        yield key, value


def _is_plain(key: str, value: Any) -> bool:
    return bool(_KEY.fullmatch(key)) and (value is None or type(value) in (bool, int, float, str))


def _needs_word(key: str, value: Any) -> bool:
    return key in CODE or "${" in str(value) or (key in SENDS and value is not None)
