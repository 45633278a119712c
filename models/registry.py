"""The table of networks: a name, one line of description, and a function that builds it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakpoint.base.text import closest

if TYPE_CHECKING:
    from torch import nn

IMAGES = ("image_shape", "num_classes")
"""What a network for images gets from the data; every other argument of its builder is an option."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A network that can be created by name.

    `build` takes the model's own options as keyword arguments and, when it reads images, `image_shape`
    (channels, height, width) and `num_classes`; it returns the network in float32 on the CPU. It imports
    torch itself, so that listing models costs nothing. `options` names them where its signature does not.
    `smallest` is the fewest pixels a side that it can read.
    """

    name: str
    description: str
    build: Callable[..., nn.Module]
    options: tuple[str, ...] | None = None
    smallest: int = 1


_RECORDS: dict[str, ModelRecord] = {}


def register(record: ModelRecord) -> None:
    """Add a model to the table. Raises ValueError when its name is taken by another builder.

    The same one again, as in a cell of a notebook that is run twice, takes its own place.
    """
    if record.name in _RECORDS and _origin(record) != _origin(_RECORDS[record.name]):
        raise ValueError(f"A model named {record.name} is already registered: choose another name.")
    _RECORDS[record.name] = record


def _origin(record: ModelRecord) -> tuple[str, str]:
    """Where its builder is defined; a partial or an object is itself."""
    return record.build.__module__, getattr(record.build, "__qualname__", repr(record.build))


def available() -> list[ModelRecord]:
    """Every registered model, in the order of registration."""
    return list(_RECORDS.values())


def registered(name: str) -> bool:
    """Whether a model has this name."""
    return name in _RECORDS


def reads_images(name: str) -> bool:
    """Whether a registered model is built for an image shape."""
    return IMAGES[0] in inspect.signature(_RECORDS[name].build).parameters


def check_size(name: str, height: int, width: int) -> None:
    """Raise ValueError for images that are too small for a registered model."""
    least = _RECORDS[name].smallest
    if min(height, width) < least:
        raise ValueError(
            f"{name} needs images of at least {least}x{least} pixels, and these are {height}x{width}: "
            "enlarge them, or choose a ResNet."
        )


def unknown(name: str) -> str:
    """The sentences for a name that no model has."""
    near = closest(name, _RECORDS)
    hint = f" Did you mean {near}?" if near else ""
    return f"There is no model named {name}.{hint} There are: {', '.join(_RECORDS)}."


def create(
    name: str,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    options: Mapping[str, Any],
) -> nn.Module:
    """A new network with initial weights drawn from torch's global generator.

    `image_shape` is (channels, height, width); it and `num_classes` are None for a network that reads no
    images. `options` are the model's own: all that have no default. Raises ValueError for an unknown name,
    for an option that the model lacks or that is not given, and for images that are too small.
    """
    if name not in _RECORDS:
        raise ValueError(unknown(name))
    _check_options(_RECORDS[name], options)
    if image_shape is not None:
        check_size(name, *image_shape[1:])
    images = dict(zip(IMAGES, (image_shape, num_classes), strict=True)) if image_shape is not None else {}
    return _RECORDS[name].build(**images, **options)


def _check_options(record: ModelRecord, options: Mapping[str, Any]) -> None:
    needed, known, any_other = _options(record)
    listed = ", ".join(known) if known else "none"
    for option in options:
        if option not in known and not any_other:
            raise ValueError(f"The model {record.name} has no option {option}; its options: {listed}.")
    for option in needed:
        if option not in options:
            raise ValueError(f"The model {record.name} needs its option {option}; its options: {listed}.")


def _options(record: ModelRecord) -> tuple[list[str], list[str], bool]:
    """The options that must be given, all of them, and whether any other is taken as well."""
    if record.options is not None:
        return list(record.options), list(record.options), False
    found = inspect.signature(record.build).parameters.values()
    own = [p for p in found if p.name not in IMAGES and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in own if p.default is p.empty]
    return needed, [p.name for p in own], any(p.kind is p.VAR_KEYWORD for p in found)
