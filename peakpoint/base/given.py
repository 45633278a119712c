"""Checks of a caller's arguments: paths, numbers, networks and optimizers. Needs no torch."""

import contextlib
import errno
import operator
import os
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from peakpoint.base.errors import CheckpointError, os_reason

INF = float("inf")
BELOW_ONE = 1 - 1e-9
LARGEST_BATCH = 1 << 16
"""Largest number of images at a time whose cost is measured."""
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "None"}


def path(value: object, name: str = "the path") -> Path:
    """Return a path with `~` expanded. Raises CheckpointError for what is no path, and a name too long."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in str(os.fspath(value)):
        raise CheckpointError(f"{name} is {value!r}: give a path.")
    found = Path(value)
    with contextlib.suppress(RuntimeError):  # no such user
        found = found.expanduser()
    try:
        found.absolute()
    except OSError as error:
        raise CheckpointError(
            f"{name} is {str(found)!r}, and the working directory is gone: {os_reason(error)}."
        ) from None
    try:
        os.lstat(found)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise CheckpointError(f"{name} is {str(found)!r}: {os_reason(error)}.") from None
    return found


def whole(name: str, value: object, least: int = 0) -> int:
    """Return a whole number, also from NumPy or torch. Raises CheckpointError for any other value."""
    found = None
    try:
        if not isinstance(value, float):
            found = operator.index(value)  # type: ignore[arg-type]
        elif value.is_integer():
            found = int(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    if found is None:
        raise CheckpointError(f"{name}={value!r} is not a whole number.")
    if found < least:
        raise CheckpointError(f"{name}={value} is out of range: it must be at least {least}.")
    return found


def text(name: str, value: object) -> str:
    """Return a text that is not empty. Raises CheckpointError for any other value."""
    if not isinstance(value, str) or not value:
        raise CheckpointError(f"{name}={value!r} is not a name.")
    return value


def flag(name: str, value: object) -> bool:
    """Return a value that is True or False, also NumPy's. Raises CheckpointError for any other."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise CheckpointError(f"{name}={value!r} is not {WORDS[bool]}: give True or False.")
    return bool(value)


def mapping(name: str, value: object) -> dict[str, Any]:
    """Return a dict, {} for None. Raises CheckpointError for any other value."""
    if value is not None and not isinstance(value, Mapping):
        raise CheckpointError(f"{name} is {_called(value)}: give a dict.")
    return dict(value or {})


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a value that was read from a file if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def network(value: object) -> None:
    """Raise CheckpointError unless the value is a torch.nn.Module, and not a class or a state_dict."""
    if not _has(value, "parameters", "state_dict", "load_state_dict"):
        raise CheckpointError(f"model is {_called(value)}: give the network, a torch.nn.Module.")


def stateful(name: str, value: object, *, optional: bool = False) -> None:
    """Raise CheckpointError unless the value has state_dict and load_state_dict; a list of them has not."""
    if (optional and value is None) or _has(value, "state_dict", "load_state_dict"):
        return
    sentence = f"{name} is {_called(value)}: give one object with state_dict() and load_state_dict()"
    if isinstance(value, list | tuple | dict):
        sentence += ", such as one of your own that joins theirs"
    raise CheckpointError(f"{sentence}.")


def require_range(node: object, group: str, low: float, high: float, names: str) -> None:
    """Raise ValueError unless each attribute in the space-separated `names` is None or in [low, high].

    `group` is the prefix of the names in the configuration, such as `optimizer.`.
    """
    for name in names.split():
        value = getattr(node, name)
        if value is not None and not (low <= value <= high and value < INF):
            bound = f"at least {low:g}" if high == INF else f"between {low:g} and {high:g}"
            raise ValueError(f"{group}{name}={value} is out of range: it must be {bound}.")


def _has(value: object, *methods: str) -> bool:
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in methods)


def _called(value: object) -> str:
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


def of_kind(value: object, kind: Any) -> bool:
    """Return whether a value has an annotated type: a plain type, a union, list[X] or dict[str, X]."""
    if kind is Any:
        return True
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        return any(of_kind(value, each) for each in inner)
    if origin is list:
        return isinstance(value, list | tuple) and all(of_kind(each, inner[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(of_kind(each, inner[1]) for each in value.values())
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind)


def in_words(kind: Any) -> str:
    """Return an annotated type in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (UnionType, Union):
        return " or ".join(map(in_words, inner))
    if origin is list:
        return f"a list, each of which is {in_words(inner[0])}"
    if origin is dict:
        return f"a dict whose values are {in_words(inner[1])}"
    return WORDS.get(kind, f"of type {getattr(kind, '__name__', kind)}")
