"""What every network that is registered has, and a network made from its name and options."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peakpoint.base import registry

if TYPE_CHECKING:
    from torch import nn

IMAGES = ("image_shape", "num_classes")
"""What a network for images gets from the data; every other argument of its builder is an option."""


@dataclass(kw_only=True)
class Model(ABC):
    """The settings of a network for images: derive from it, register, and build the network in `build`.

    `smallest` is the fewest pixels a side that the network can read.
    """

    smallest: ClassVar[int] = 1
    name: str

    @abstractmethod
    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> "nn.Module":
        """Return the network in float32 on the CPU, for images of (channels, height, width)."""

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for images that are too small."""
        if min(height, width) < self.smallest:
            raise ValueError(
                f"{self.name} needs images of at least {self.smallest}x{self.smallest} pixels, and these "
                f"are {height}x{width}: enlarge them, or choose a ResNet."
            )


def registered(name: str) -> bool:
    """Return whether a model has this name."""
    return name in registry.table("model")


def reads_images(name: str) -> bool:
    """Return whether a registered model is built for an image shape."""
    component: Any = registry.find("model", name)
    build = getattr(component, "build", component)
    return IMAGES[0] in inspect.signature(build).parameters


def create(
    name: str,
    *,
    image_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    options: Mapping[str, Any],
) -> "nn.Module":
    """Return a new network with initial weights drawn from torch's global generator.

    `image_shape` is (channels, height, width); it and `num_classes` are None for a network that reads no
    images. `options` are the model's own: all that have no default. Raises ValueError for an unknown name,
    for an option that the model lacks or that is not given, and for images that are too small.
    """
    images = dict(zip(IMAGES, (image_shape, num_classes), strict=True)) if image_shape is not None else {}
    component: Any = registry.find("model", name)
    if not is_dataclass(component):  # a class or function of one's own, called with its options
        _check_arguments(name, component, options)
        network: nn.Module = component(**images, **options)
        return network
    settings = registry.make("model", name, options)
    if image_shape is not None:
        settings.check_size(*image_shape[1:])
    network = settings.build(**images)
    return network


def _check_arguments(name: str, build: Any, options: Mapping[str, Any]) -> None:
    found = inspect.signature(build).parameters.values()
    own = [p for p in found if p.name not in IMAGES and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in own if p.default is p.empty]
    any_other = any(p.kind is p.VAR_KEYWORD for p in found)
    known = [p.name for p in own]
    registry.check_options("model", name, options, needed, [*known, *(options if any_other else ())])
