"""Where images come from: the table of sources. It needs no torch; datasets.py reads what is chosen.

A plugin adds a source with `register_source`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.config import Data, Synthetic
from trainer.errors import UserError, nearest

if TYPE_CHECKING:
    from trainer.datasets import Images

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Source:
    """A named source; `load(cfg, split)` reads one split, "train" or "test".

    `settings` is the class of `cfg`.
    """

    name: str
    description: str
    load: Callable[[Data, str], Images]
    settings: type[Data] = Data


_SOURCES: dict[str, Source] = {}


def register_source(source: Source) -> None:
    """Add a source to the table. Raises UserError when its name is taken."""
    if source.name in _SOURCES:
        raise UserError(f"A data source named {source.name!r} is already registered: choose another name.")
    _SOURCES[source.name] = source


def sources() -> tuple[Source, ...]:
    """Every registered source, in the order of registration."""
    return tuple(_SOURCES.values())


def find(name: str) -> Source:
    """The source of a name. Raises UserError, with the nearest name, when there is none."""
    if name not in _SOURCES:
        raise UserError(f"data.name={name} is not a choice{nearest(name, _SOURCES)}")
    return _SOURCES[name]


def _torchvision(class_name: str, cfg: Data, split: str) -> Images:
    from trainer import datasets

    return datasets.from_torchvision(class_name, cfg, split)


def _image_folder(cfg: Data, split: str) -> Images:
    from trainer import datasets

    return datasets.from_image_folder(cfg, split)


def _npz(cfg: Data, split: str) -> Images:
    from trainer import datasets

    return datasets.from_npz(cfg, split)


def _digits(cfg: Data, split: str) -> Images:
    from trainer import datasets

    return datasets.from_digits(cfg, split)


def _synthetic(cfg: Data, split: str) -> Images:
    from trainer import datasets

    return datasets.from_synthetic(cfg, split)


for _source in (
    Source("cifar100", "CIFAR-100: 32x32 colour, 100 classes", functools.partial(_torchvision, "CIFAR100")),
    Source("cifar10", "CIFAR-10: 32x32 colour, 10 classes", functools.partial(_torchvision, "CIFAR10")),
    Source("mnist", "MNIST: 28x28 grey digits", functools.partial(_torchvision, "MNIST")),
    Source(
        "fashion_mnist",
        "Fashion-MNIST: 28x28 grey clothes",
        functools.partial(_torchvision, "FashionMNIST"),
    ),
    Source("image_folder", "<root>/{train,test}/<class>/<image file>", _image_folder),
    Source("npz", "<root>/{train,test}.npz with images, labels and perhaps classes", _npz),
    Source("digits", "scikit-learn's 1,797 grey 8x8 digits; no download", _digits),
    Source("synthetic", "made images that can be learned; no download", _synthetic, Synthetic),
):
    register_source(_source)
