"""Where images come from: the table of sources. It needs no torch; datasets.py reads what is chosen.

A plugin adds a source with `register_source`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peakpoint.base.errors import UserError
from peakpoint.base.text import nearest
from peakpoint.trainer.config.schema import TEST, TRAIN, Data, Synthetic

if TYPE_CHECKING:
    from peakpoint.trainer.data.readers import Images

Size = tuple[int | None, int | None]


@dataclass(frozen=True)
class Source:
    """A named source; `load(cfg, split)` reads one split, "train" or "test".

    `settings` is the class of `cfg`. `size` says how many training images there are, validation part
    included, and how many pixels a side they have; None where that is not known before they are read.
    """

    name: str
    description: str
    load: Callable[[Data, str], Images]
    settings: type[Data] = Data
    size: Callable[[Data], Size] = lambda _: (None, None)


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


def check_fits(cfg: Data, batch_size: int, images: int | None, side: int | None) -> None:
    """Raise UserError for a batch of more than all `images`, and a cutout of more than their `side`."""
    if images is not None and images < batch_size:
        raise UserError(
            f"batch_size={batch_size} is more than the {images} training images of {cfg.name}: lower it."
        )
    if side is not None and cfg.cutout > side:
        raise UserError(f"data.cutout={cfg.cutout} is more than the {side} pixels of an image: lower it.")


def _torchvision(class_name: str, cfg: Data, split: str) -> Images:
    from peakpoint.trainer.data import readers

    return readers.from_torchvision(class_name, cfg, split)


def _image_folder(cfg: Data, split: str) -> Images:
    from peakpoint.trainer.data import readers

    return readers.from_image_folder(cfg, split)


def _npz(cfg: Data, split: str) -> Images:
    from peakpoint.trainer.data import readers

    return readers.from_npz(cfg, split)


def _digits(cfg: Data, split: str) -> Images:
    from peakpoint.trainer.data import readers

    return readers.from_digits(cfg, split)


def _synthetic(cfg: Data, split: str) -> Images:
    from peakpoint.trainer.data import readers

    return readers.from_synthetic(cfg, split)


def _size(images: int, side: int) -> Callable[[Data], Size]:
    return lambda _: (images, side)


def _synthetic_size(cfg: Data) -> Size:
    assert isinstance(cfg, Synthetic)
    return cfg.train_size, cfg.native_size


_cifar100, _cifar10, _mnist, _fashion = (
    functools.partial(_torchvision, name) for name in ("CIFAR100", "CIFAR10", "MNIST", "FashionMNIST")
)

for _source in (
    Source("cifar100", "CIFAR-100: 32x32 colour, 100 classes", _cifar100, size=_size(50_000, 32)),
    Source("cifar10", "CIFAR-10: 32x32 colour, 10 classes", _cifar10, size=_size(50_000, 32)),
    Source("mnist", "MNIST: 28x28 grey digits", _mnist, size=_size(60_000, 28)),
    Source("fashion_mnist", "Fashion-MNIST: 28x28 grey clothes", _fashion, size=_size(60_000, 28)),
    Source(
        "image_folder",
        "<root>/{train,test}/<class>/<image file>",
        _image_folder,
        size=lambda cfg: (None, cfg.image_size),  # they are cut to it while they are read
    ),
    Source("npz", "<root>/{train,test}.npz with images, labels and perhaps classes", _npz),
    Source("digits", "scikit-learn's 1,797 grey 8x8 digits; no download", _digits, size=_size(1438, 8)),
    Source(
        "synthetic", "made images that can be learned; no download", _synthetic, Synthetic, _synthetic_size
    ),
):
    register_source(_source)


def load_train(cfg: Data) -> Images:
    """All training images of `cfg.name`, validation part included. Raises UserError."""
    return find(cfg.name).load(cfg, TRAIN)


def load_test(cfg: Data) -> Images:
    """All test images of `cfg.name`. Raises UserError."""
    return find(cfg.name).load(cfg, TEST)
