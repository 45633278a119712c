"""What every source of images that is registered has, and where it may write. It needs no torch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peakpoint.base import given
from peakpoint.base.errors import UserError
from peakpoint.base.given import INF, require_range

if TYPE_CHECKING:
    from peakpoint.trainer.data.images import Images

TRAIN, TEST = "train", "test"
"""The splits of a data set."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a data set before it is read; None where it is not.

    `images` counts those of training, the validation part included; `side` is in pixels.
    """

    images: int | None = None
    side: int | None = None
    channels: int | None = None
    classes: int | None = None


@dataclass(kw_only=True)
class Data(ABC):
    """A data set, its validation split, and how a training batch is augmented.

    Derive from it, register, and read the images in `read`; `facts` spares reading them where it can.
    """

    name: str
    root: str
    val_fraction: float
    image_size: int | None
    crop_padding: int
    flip: bool
    cutout: int

    def __post_init__(self) -> None:
        require_range(self, "data.", 1e-9, 0.9, "val_fraction")
        require_range(self, "data.", 1, INF, "image_size")
        require_range(self, "data.", 0, INF, "crop_padding cutout")

    @property
    def folder(self) -> Path:
        """Return the folder `root`. Raises CheckpointError when it is not a path."""
        return given.path(self.root, "data.root")

    @property
    def facts(self) -> Facts:
        """Return what is known before anything is read."""
        return Facts()

    @abstractmethod
    def read(self, split: str) -> "Images":
        """Return all images of `train` (the validation part included) or `test`. Raises UserError."""


def check_fits(cfg: Data, batch_size: int, images: int | None, side: int | None) -> None:
    """Raise UserError for a batch of more than all `images`, and a cutout of more than their `side`."""
    if images is not None and images < batch_size:
        raise UserError(
            f"batch_size={batch_size} is more than the {images} training images of {cfg.name}: lower it."
        )
    if side is not None and cfg.cutout > side:
        raise UserError(f"data.cutout={cfg.cutout} is more than the {side} pixels of an image: lower it.")


_recorded: set[Path] = set()
"""Folders that only a record names.

A run directory or a checkpoint may come from a stranger, and a user who resumes or measures it did not choose
the folder of its images: it is read, and no decoded images or downloads are put there.
"""


def note_root(root: str, *, by_record: bool) -> None:
    """Record whether only a record names `root`, or the user or conf/ as well."""
    if root:
        (_recorded.add if by_record else _recorded.discard)(given.path(root, "data.root").resolve())


def may_write(root: Path) -> bool:
    """Return whether something new may be made in the folder of the data."""
    return root.resolve() not in _recorded
