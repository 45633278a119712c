"""A split of a data set held whole, and the sources that are read as arrays: .npz, digits, synthetic.

Training and test images are read by separate calls, so that a run can do without a test set. No source
depends on the seed of the run.
"""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from peakpoint.base import bounded
from peakpoint.base.bounded import Absent
from peakpoint.base.errors import CheckpointError, UserError

_MOST_CHANNELS = 4
_MOST_CLASSES = 2**16
_BUNDLED_SEED = 0  # fixes the digits split and the synthetic images, whatever the seed of the run


@dataclass(frozen=True)
class Images:
    """A split held whole: images (N, H, W, C) uint8, labels (N,) int64 that index `classes`."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        count, labels = len(self.images), self.labels
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or not count:
            raise UserError(
                f"Images must be uint8 of shape (N, H, W, C) with N above 0, "
                f"not {self.images.dtype} of shape {tuple(self.images.shape)}."
            )
        if labels.dtype != torch.int64 or labels.shape != (count,):
            raise UserError(
                f"Labels must be int64 of shape ({count},), not {labels.dtype} of {tuple(labels.shape)}."
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.classes):
            raise UserError(f"Labels run from {low} to {high}, but there are {len(self.classes)} classes.")


def stratified_split(labels: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return indices of the kept and of the held-out part of `labels` (N,), both rising and int64.

    The part held out has round(N * fraction) samples, shared among the classes by largest remainder, but at
    least one of each class that has two or more, and never a whole class.
    """
    counts = torch.bincount(labels).tolist()
    total = round(len(labels) * fraction)
    quota = [count * total / len(labels) for count in counts]
    low = [min(1, max(count - 1, 0)) for count in counts]
    take = [min(max(int(q), least), max(n - 1, 0)) for q, least, n in zip(quota, low, counts, strict=True)]
    while sum(take) < total:
        open_classes = [c for c, n in enumerate(counts) if take[c] < n - 1]
        if not open_classes:
            break
        take[max(open_classes, key=lambda c: (quota[c] - take[c], -c))] += 1
    while sum(take) > total and any(t > least for t, least in zip(take, low, strict=True)):
        spare = [c for c in range(len(counts)) if take[c] > low[c]]
        take[min(spare, key=lambda c: (quota[c] - take[c], c))] -= 1

    shuffled = torch.randperm(len(labels), generator=generator)
    grouped = shuffled[torch.sort(labels[shuffled], stable=True).indices]
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for group, size in zip(grouped.split(counts), take, strict=True):
        held_out[group[:size]] = True
    return (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)


def load_npz(path: Path) -> Images:
    """Read an .npz of images (N, H, W, C) or (N, H, W), labels (N,) and perhaps classes. Raises UserError."""
    classes = _npz_classes(path)
    images = _npz_array(path, "images")
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise UserError(
            f"{path}: images must be uint8 of shape (N, H, W, C) or (N, H, W), "
            f"not {images.dtype} of shape {images.shape}{_as_bytes(images)}."
        )
    if images.ndim == 4 and not _channels_last(*images.shape[1:]):
        raise UserError(
            f"{path}: images must have their channels last, (N, H, W, C), and these are {images.shape}: "
            "images.transpose(0, 2, 3, 1) makes that of (N, C, H, W)."
        )
    labels = torch.from_numpy(_npz_labels(path).astype(np.int64))
    images = np.ascontiguousarray(images if images.ndim == 4 else images[..., None])
    try:
        return Images(torch.from_numpy(images), labels, classes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _channels_last(height: int, width: int, last: int) -> bool:
    """Return whether the last axis can be that of channels: at most 4, or more in a square image."""
    if height <= _MOST_CHANNELS and width == last != height:
        return False
    return last <= _MOST_CHANNELS or height == width != last


def _as_bytes(images: np.ndarray) -> str:
    """Return how numbers of another type become bytes, where that is plain."""
    if images.dtype.kind not in "iuf":
        return ""
    low, high = images.min(), images.max()
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        return ": (images * 255).round().astype('uint8') makes bytes of 0 to 1"
    return ": images.astype('uint8') makes bytes of 0 to 255" if low >= 0 and high <= 255 else ""


def _npz_classes(path: Path) -> tuple[str, ...]:
    """Return the names in `classes`, those of train.npz beside it, or numbers up to the highest label."""
    with _opened(path) as archive:
        named = "classes" in archive.files
    if named:
        names = _npz_array(path, "classes")
        if names.ndim != 1 or names.dtype.kind != "U":
            raise UserError(
                f"{path}: classes must be a list of text, not {names.dtype} of shape {names.shape}."
            )
        return tuple(names.tolist())
    train = path.with_name("train.npz")
    if path != train and (path.name == "test.npz" or train.exists()):
        return _npz_classes(train)
    return tuple(str(label) for label in range(int(_npz_labels(path).max()) + 1))


def _npz_labels(path: Path) -> np.ndarray:
    labels = _npz_array(path, "labels")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"{path}: labels must be integers of shape (N,), not {labels.dtype} of shape {labels.shape}."
        )
    wrong = (labels < 0) | (labels >= _MOST_CLASSES)
    if wrong.any():
        place = int(wrong.argmax())
        raise UserError(
            f"{path}: labels[{place}] is {labels[place]}, and labels are numbers from 0 to "
            f"{_MOST_CLASSES - 1}, one for each class: correct it, or leave out its image."
        )
    return labels


def _npz_array(path: Path, key: str) -> np.ndarray:
    with _opened(path) as archive:
        if key not in archive.files:
            raise UserError(f"{path}: has no array {key!r}; it holds {', '.join(archive.files) or 'none'}.")
        array: np.ndarray = archive[key]
    if not array.size:
        raise UserError(
            f"{path}: {key} is empty, of shape {array.shape}: save at least one image, with its class."
        )
    return array


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Open the archive without pickle. Whatever is wrong with it becomes one UserError."""
    try:
        with bounded.opened(path) as file:
            if file.peek(2)[:2] != b"PK":  # NumPy takes anything else for a pickle, and advises to load it
                raise ValueError("it is no archive of arrays, as np.savez writes it")
            with np.load(file, allow_pickle=False) as archive:
                yield archive
    except Absent as error:
        raise UserError(f"{path} is missing: set data.root to the folder that holds it.") from error
    except CheckpointError as error:
        raise UserError(str(error)) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as an .npz file: {reason}.") from error


def from_digits(*, train: bool) -> Images:
    """Return a split of scikit-learn's digits. Raises UserError without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("data=digits needs scikit-learn: pip install 'peakpoint[digits]'.") from error
    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    parts = stratified_split(labels, 0.2, torch.Generator().manual_seed(_BUNDLED_SEED))
    index = parts[0] if train else parts[1]
    return Images(torch.from_numpy(pixels)[index], labels[index], tuple(str(digit) for digit in range(10)))


def from_synthetic(*, train: bool, count: int, num_classes: int, channels: int, side: int) -> Images:
    """Make images, each of which is its class's smooth pattern, a weaker one of another class, and noise."""
    generator = torch.Generator().manual_seed(_BUNDLED_SEED)
    coarse = torch.randint(-32, 33, (num_classes, channels, 4, 4), generator=generator)
    smooth = F.interpolate(coarse.double(), size=(side, side), mode="bilinear", align_corners=False)
    patterns = smooth.round().to(torch.int16).permute(0, 2, 3, 1)

    # Integers only from here on: the same images on every machine. Chunks bound the memory.
    generator.manual_seed(_BUNDLED_SEED + (1 if train else 2))
    labels = torch.arange(count) % num_classes
    images = torch.empty((count, side, side, channels), dtype=torch.uint8)
    for chunk, chunk_labels in zip(images.split(1024), labels.split(1024), strict=True):
        other = torch.randint(num_classes, (len(chunk),), generator=generator)
        noise = torch.randint(-96, 97, chunk.shape, dtype=torch.int16, generator=generator)
        mixed = 128 + patterns[chunk_labels] + patterns[other] * 3 // 4 + noise
        chunk.copy_(mixed.clamp_(0, 255))
    return Images(images, labels, tuple(str(label) for label in range(num_classes)))
