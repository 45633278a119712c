"""From a source to batches on the device: split, order, augmentation.

The order of an epoch is a pure function of (seed, epoch) and the augmentation of a batch of (seed, epoch,
batch index): all of an epoch's random choices are drawn at once from a CPU generator of its own. So a run
resumes at any batch by one integer, without replay, and the same batches come whatever the device, the
number of threads, or the state of the global generators, which are never touched.

Images stay uint8, on the device when they fit; a batch is cropped, flipped and normalised as a whole by a
handful of tensor operations, none of which waits for the device.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from peakpoint.base.errors import UserError
from peakpoint.trainer.config.schema import Data
from peakpoint.trainer.data.readers import Images, stratified_split
from peakpoint.trainer.data.sources import check_fits, load_test, load_train

log = logging.getLogger("peakpoint")

Batches = Iterator[tuple[Tensor, Tensor]]


def generator_for(*key: str | int) -> torch.Generator:
    """A CPU generator whose seed is a stable hash of `key`: equal keys draw equal numbers, always."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def channel_statistics(images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) float64, in [0, 1] units, of images[index] (N, H, W, C) uint8.

    A constant channel gets a deviation of 1, so that it can be divided by.
    """
    channels = images.shape[-1]
    total, squares = (torch.zeros(images[0].numel(), dtype=torch.float64) for _ in range(2))
    # 256 squares of a uint8 stay below 2**24: float32 adds them without error, in any order.
    for part in index.split(256):
        pixels = images[part].view(len(part), -1).to(torch.float32)
        total += pixels.sum(0)
        squares += pixels.square_().sum(0)
    count = len(index) * total.numel() // channels
    mean = total.view(-1, channels).sum(0) / count
    variance = squares.view(-1, channels).sum(0) / count - mean.square()
    std = variance.clamp(min=0).sqrt()
    return mean / 255, torch.where(std > 0, std / 255, 1.0)


def crop_and_flip(images: Tensor, canvas: Tensor, choices: Tensor) -> Tensor:
    """Random crops (B, H, W, C) of `images` (B, H, W, C), both uint8.

    `choices` (3, B): the first row and column of each crop on the image padded with black, and 1 where the
    image is mirrored first, which has the distribution of torchvision's RandomCrop and RandomHorizontalFlip.
    `canvas` (1 or 2, at least B, H + 2p, W + 2p, C) is scratch space with a black border; 2 when flipping.
    """
    count, height, width, channels = images.shape
    padding = (canvas.shape[2] - height) // 2
    inside = canvas[:, :count, padding : padding + height, padding : padding + width]
    inside[0] = images
    if len(canvas) == 2:
        inside[1] = images.flip(2)
    # Every crop is a view into the canvas, so that one gather copies the chosen ones, row by row.
    side, image, row, pixel, _ = canvas.stride()
    windows = canvas.as_strided(
        (len(canvas), count, 2 * padding + 1, 2 * padding + 1, height, width * channels),
        (side, image, row, pixel, row, 1),
    )
    top, left, mirrored = choices
    which = torch.arange(count, device=canvas.device)
    return windows[mirrored, which, top, left].view(images.shape)


def cut_squares(images: Tensor, size: int, choices: Tensor) -> None:
    """Zero a square of `size` pixels in each of `images` (B, C, H, W), in place (DeVries & Taylor 2017).

    `choices` (2, B): row and column of the middle, anywhere in the image; what lies outside is cut off.
    """
    rows, columns = (
        _outside(torch.arange(length, device=images.device), centre[:, None] - size // 2, size)
        for length, centre in zip(images.shape[2:], choices, strict=True)
    )
    images.mul_((rows[:, :, None] | columns[:, None, :])[:, None].to(images.dtype))


def _outside(position: Tensor, first: Tensor, size: int) -> Tensor:
    return (position < first) | (position >= first + size)


class Store:
    """Images and labels that give batches on `device`, whether they lie there or in host memory."""

    def __init__(self, source: Images, device: torch.device) -> None:
        self.images, self.labels, self.device = source.images, source.labels, device
        if device.type == "cuda" and source.images.nbytes * 2 < torch.cuda.mem_get_info(device)[0]:
            self.images, self.labels = source.images.to(device), source.labels.to(device)
        self.pinned = self.images.device.type != device.type

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, H, W, C) uint8 and labels (B,) int64; `index` (B,) lies where the images do."""
        labels = self.labels.index_select(0, index)
        if not self.pinned:
            return self.images.index_select(0, index), labels
        # Pinned memory comes from torch's cache, which waits for the copy before it is used again.
        images = torch.empty((len(index), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
        torch.index_select(self.images, 0, index, out=images)
        labels = labels.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device, non_blocking=True), labels


class Preparation:
    """Turns gathered uint8 images (B, H, W, C) into what the network sees (B, C, H, W)."""

    def __init__(
        self, cfg: Data, source: Images, train: Tensor, device: torch.device, layout: torch.memory_format
    ) -> None:
        height, width, channels = source.images.shape[1:]
        self.padding, self.flip, self.cutout, self.layout = cfg.crop_padding, cfg.flip, cfg.cutout, layout
        self.mean, self.std = channel_statistics(source.images, train)
        # One value for every byte of an image: the product then runs over contiguous memory.
        self.scale, self.shift = (
            each.to(torch.float32).repeat(height * width).to(device)
            for each in (1 / (255 * self.std), -self.mean / self.std)
        )
        self.native = (height, width)
        self.size = (cfg.image_size, cfg.image_size) if cfg.image_size else self.native
        self.image_shape = (channels, *self.size)
        self.canvas = torch.empty(0)

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Everything random of an epoch over `index` (N,), as rows (6, N) int64.

        Order; row and column of the crop; mirrored; row and column of the middle of the cut square.
        """
        height, width = self.native
        count, offsets = len(index), 2 * self.padding + 1
        order = index[torch.randperm(count, generator=generator)]
        limits = (offsets, offsets, 2 if self.flip else 1, height, width)
        return torch.stack([order, *(torch.randint(n, (count,), generator=generator) for n in limits)])

    def augmented(self, pixels: Tensor, choices: Tensor) -> Tensor:
        """A training batch; `choices` (5, B) are rows of `draw` without the order."""
        if self.padding or self.flip:
            pixels = crop_and_flip(pixels, self._canvas(pixels), choices[:3])
        images = self._normalised(pixels)
        if self.cutout:
            cut_squares(images, self.cutout, choices[3:])
        return self._finished(images)

    def plain(self, pixels: Tensor) -> Tensor:
        """An evaluation batch."""
        return self._finished(self._normalised(pixels))

    def _canvas(self, pixels: Tensor) -> Tensor:
        count, height, width, channels = pixels.shape
        border = 2 * self.padding
        shape = (2 if self.flip else 1, count, height + border, width + border, channels)
        if self.canvas.shape != shape:
            self.canvas = pixels.new_zeros(shape)
        return self.canvas

    def _normalised(self, pixels: Tensor) -> Tensor:
        flat = pixels.view(len(pixels), -1).to(torch.float32)
        return torch.addcmul(self.shift, flat, self.scale, out=flat).view(pixels.shape).permute(0, 3, 1, 2)

    def _finished(self, images: Tensor) -> Tensor:
        if self.size != self.native:
            shrinks = any(new < old for new, old in zip(self.size, self.native, strict=True))
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=shrinks)
        return images.contiguous(memory_format=self.layout)


@dataclass(kw_only=True)
class DataModule:
    """The batches of a run: images (B, C, H, W) float32, normalised, and labels (B,) int64, on the device.

    `fingerprint` says which images and which split were used; `test_fingerprint` which test images, once
    they were read. Both hold plain JSON types.
    """

    cfg: Data
    seed: int
    batch_size: int
    eval_batch_size: int
    classes: tuple[str, ...]
    fingerprint: dict[str, str | int]
    test_fingerprint: dict[str, str | int] | None = None
    _preparation: Preparation
    _store: Store
    _train: Tensor
    _val: Tensor
    _test: Images | None = None

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training part; what does not fill one is left out of an epoch."""
        return len(self._train) // self.batch_size

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images in a batch."""
        return self._preparation.image_shape

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the training part, in [0, 1] units."""
        return tuple(self._preparation.mean.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over the training part, in [0, 1] units."""
        return tuple(self._preparation.std.tolist())

    def train_batches(self, epoch: int, start: int = 0) -> Batches:
        """Batches start, start + 1, ... of an epoch, without making those before."""
        drawn = self._preparation.draw(self._train, generator_for("epoch", self.seed, epoch))
        order, choices = drawn[0].to(self._store.images.device), drawn[1:].to(self._store.device)
        for step in range(start, self.steps_per_epoch):
            batch = slice(step * self.batch_size, (step + 1) * self.batch_size)
            pixels, labels = self._store.gather(order[batch])
            yield self._preparation.augmented(pixels, choices[:, batch]), labels

    def val_batches(self) -> Batches:
        """All of the validation part, in fixed order, not augmented."""
        return self._in_order(self._store, self._val)

    def test_batches(self) -> Batches:
        """All of the test set, in fixed order, not augmented. Raises UserError as read_test does."""
        store = Store(self.read_test(), self._store.device)
        return self._in_order(store, torch.arange(len(store.labels)))

    def read_test(self) -> Images:
        """The test set, read at the first call and kept: its shape and classes are checked, nothing else.

        Raises UserError when it cannot be read, or is not like the training set.
        """
        if self._test is None:
            source = load_test(self.cfg)
            shape, expected = tuple(source.images.shape[1:]), tuple(self._store.images.shape[1:])
            if shape != expected:
                raise UserError(
                    f"The test set of {self.cfg.name} has images of shape {shape}, and the training set of "
                    f"{expected} (height, width, channels): make them alike."
                )
            if source.classes != self.classes:
                odd = sorted(set(source.classes) ^ set(self.classes))
                how = f"{odd[0]!r} is in one of them alone" if odd else "they come in another order"
                raise UserError(
                    f"The test set of {self.cfg.name} has other classes than the training set: {how}."
                )
            _tell_empty(source, "test", "the network is not tested on it")
            self._test = source
            digest = _sha256(source.images, source.labels)
            self.test_fingerprint = {"test_sha256": digest, "test_size": len(source.labels)}
        return self._test

    def _in_order(self, store: Store, index: Tensor) -> Batches:
        for part in index.to(store.images.device).split(self.eval_batch_size):
            pixels, labels = store.gather(part)
            yield self._preparation.plain(pixels), labels


def build_data(
    cfg: Data,
    *,
    seed: int,
    batch_size: int,
    eval_batch_size: int,
    device: torch.device,
    channels_last: bool,
) -> DataModule:
    """Read the training images and split off the validation part, which depends on `seed` alone.

    Raises UserError when the source cannot be read, or is too small for the split or for one batch.
    """
    source = load_train(cfg)
    train, val = stratified_split(source.labels, cfg.val_fraction, generator_for("split", seed))
    _check(cfg, source, (len(train), len(val)), batch_size)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return DataModule(
        cfg=cfg,
        seed=seed,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        classes=source.classes,
        fingerprint={
            "name": cfg.name,
            "train_sha256": _sha256(source.images, source.labels),
            "split_sha256": _sha256(train, val),
            "train_size": len(train),
            "val_size": len(val),
        },
        _preparation=Preparation(cfg, source, train, device, layout),
        _store=Store(source, device),
        _train=train,
        _val=val,
    )


def _check(cfg: Data, source: Images, sizes: tuple[int, int], batch_size: int) -> None:
    train, val = sizes
    if not val:
        raise UserError(
            f"No class of {cfg.name} has two training images, so none is left for validation: add images."
        )
    check_fits(cfg, batch_size, train, min(source.images.shape[1:3]))
    _tell_empty(source, "training", "the network cannot learn it")


def _tell_empty(source: Images, split: str, consequence: str) -> None:
    """Warn of the classes that a split has no image of."""
    counts = torch.bincount(source.labels, minlength=len(source.classes)).tolist()
    empty = [name for name, count in zip(source.classes, counts, strict=True) if not count]
    if empty:
        more = f" (and {len(empty) - 1} more classes)" if len(empty) > 1 else ""
        log.warning("no %s image is of class %r%s: %s", split, empty[0], more, consequence)


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(memoryview(tensor.numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()
