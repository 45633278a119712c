"""The table of models: a name, one line of description, and a function that builds it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model that can be created by name.

    `build` takes the keyword arguments `image_shape` (channels, height, width), `num_classes`, and the
    model's own options, and returns the network in float32 on the CPU. It imports torch itself, so that
    listing models costs nothing.
    """

    name: str
    description: str
    build: Callable[..., nn.Module]


_RECORDS: dict[str, ModelRecord] = {}


def register(record: ModelRecord) -> None:
    """Add a model to the table. Raises ValueError when its name is taken."""
    if record.name in _RECORDS:
        raise ValueError(f"A model named {record.name} is already registered: choose another name.")
    _RECORDS[record.name] = record


def available() -> list[ModelRecord]:
    """Every registered model, in the order of registration."""
    return list(_RECORDS.values())


def create(
    name: str, *, image_shape: tuple[int, int, int], num_classes: int, options: Mapping[str, Any]
) -> nn.Module:
    """A new network with initial weights drawn from torch's global generator.

    `image_shape` is (channels, height, width); `options` are the model's own, all of them. Raises
    ValueError for an unknown name, and for an option that the model lacks or that is not given.
    """
    if name not in _RECORDS:
        near = difflib.get_close_matches(name, _RECORDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"There is no model named {name}.{hint} There are: {', '.join(_RECORDS)}.")
    build = _RECORDS[name].build
    known = [n for n in inspect.signature(build).parameters if n not in ("image_shape", "num_classes")]
    _check_options(name, known, options)
    return build(image_shape=image_shape, num_classes=num_classes, **options)


def _check_options(name: str, known: list[str], options: Mapping[str, Any]) -> None:
    listed = ", ".join(known) if known else "none"
    for option in options:
        if option not in known:
            raise ValueError(f"The model {name} has no option {option}; its options: {listed}.")
    for option in known:
        if option not in options:
            raise ValueError(f"The model {name} needs its option {option}; its options: {listed}.")
