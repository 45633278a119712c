"""From a source to batches on the device: the split and the order.

The order of an epoch is a pure function of (seed, epoch) and the augmentation of a batch of (seed, epoch,
batch index): all of an epoch's random choices are drawn at once from a CPU generator of its own. So a run
resumes at any batch by one integer, without replay, and the same batches come whatever the device, the
number of threads, or the state of the global generators, which are never touched.

Images stay uint8, on the device when they fit there twice.
"""

import hashlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from peakpoint.base import digests
from peakpoint.base.digests import stable_number
from peakpoint.base.errors import UserError
from peakpoint.trainer.data.augmentation import Preparation
from peakpoint.trainer.data.images import Images, stratified_split
from peakpoint.trainer.data.settings import TEST, TRAIN, Data, check_fits

log = logging.getLogger("peakpoint")

Batches = Iterator[tuple[Tensor, Tensor]]


def generator_for(*key: str | int) -> torch.Generator:
    """Return a CPU generator whose seed is a stable hash of `key`: equal keys draw equal numbers, always."""
    return torch.Generator().manual_seed(stable_number(*key))


class ImageStore:
    """Images and labels that give batches on `device`, whether they lie there or in host memory."""

    def __init__(self, source: Images, device: torch.device) -> None:
        self.images, self.labels, self.device = source.images, source.labels, device
        if device.type == "cuda" and source.images.nbytes * 2 < torch.cuda.mem_get_info(device)[0]:
            self.images, self.labels = source.images.to(device), source.labels.to(device)
        self.pinned = self.images.device.type != device.type

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (B, H, W, C) uint8 and labels (B,) int64; `index` (B,) lies where the images do."""
        labels = self.labels.index_select(0, index)
        if not self.pinned:
            return self.images.index_select(0, index), labels
        # Pinned memory comes from torch's cache, which waits for the copy before it is used again.
        images = torch.empty((len(index), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=True)
        torch.index_select(self.images, 0, index, out=images)
        labels = labels.pin_memory().to(self.device, non_blocking=True)
        return images.to(self.device, non_blocking=True), labels


class DataModule:
    """The batches of a run: images (B, C, H, W) float32, normalised, and labels (B,) int64, on the device.

    `image_shape` is (C, H, W), and `mean` and `std` are those of each channel over the training part, in
    [0, 1] units. `steps_per_epoch` counts full batches: what does not fill one is left out of an epoch.
    `fingerprint` says which images and which split were used; `test_fingerprint` which test images, once
    they were read. Both hold plain JSON types.
    """

    def __init__(
        self,
        cfg: Data,
        *,
        seed: int,
        batch_size: int,
        eval_batch_size: int,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        """Read the training images and split off the validation part, which depends on `seed` alone.

        Raises UserError when the source cannot be read, or is too small for the split or for one batch.
        """
        source = cfg.read(TRAIN)
        train, val = stratified_split(source.labels, cfg.val_fraction, generator_for("split", seed))
        _check(cfg, source, (len(train), len(val)), batch_size)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.cfg, self.seed = cfg, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.steps_per_epoch = len(train) // batch_size
        self.classes, self.num_classes = source.classes, len(source.classes)
        self._train, self._val = train, val
        self._test: Images | None = None
        self._seen = digests.hasher(digests.BLAKE3)
        self._store = ImageStore(source, device)
        self._preparation = Preparation(cfg, source, train, device, layout)
        self.image_shape = self._preparation.image_shape
        self.mean, self.std = (
            tuple(each.tolist()) for each in (self._preparation.mean, self._preparation.std)
        )
        self.test_fingerprint: dict[str, str | int] | None = None
        self.fingerprint: dict[str, str | int] = {
            "name": cfg.name,
            "train_sha256": _sha256(source.images, source.labels),
            "split_sha256": _sha256(train, val),
            "train_size": len(train),
            "val_size": len(val),
        }

    def add_label_noise(self, share: float) -> None:
        """Give that share of the training images another label, drawn among the other classes by the seed.

        Symmetric label noise as of Zhang et al. 2017 (arXiv:1611.03530); validation and test labels stay.
        """
        generator = generator_for("labels", self.seed)
        chosen = self._train[torch.randperm(len(self._train), generator=generator)]
        chosen = chosen[: round(share * len(chosen))]
        shift = torch.randint(1, max(2, self.num_classes), (len(chosen),), generator=generator)
        labels = self._store.labels.clone()  # the source may keep its own
        chosen = chosen.to(labels.device)
        labels[chosen] = (labels[chosen] + shift.to(labels.device)) % self.num_classes
        self._store.labels = labels

    def train_batches(self, epoch: int, start: int = 0) -> Batches:
        """Return batches start, start + 1, ... of an epoch, without making those before."""
        drawn = self._preparation.draw(self._train, generator_for("epoch", self.seed, epoch))
        order, choices = drawn[0].to(self._store.images.device), drawn[1:].to(self._store.device)
        rows = memoryview(drawn.T.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]
        seen = self._seen = digests.hasher(digests.BLAKE3)
        seen.update(rows[: start * self.batch_size])
        for step in range(start, self.steps_per_epoch):
            batch = slice(step * self.batch_size, (step + 1) * self.batch_size)
            seen.update(rows[batch])
            pixels, labels = self._store.gather(order[batch])
            yield self._preparation.augmented(pixels, choices[:, batch]), labels

    def seen(self) -> str:
        """Return the digest of the latest epoch's batches so far: which images, and how each is augmented.

        Those before a `start` count as well, so that a resumed epoch has the digest of an uninterrupted one.
        """
        return digests.named(self._seen)

    def val_batches(self) -> Batches:
        """Return all of the validation part, in fixed order, not augmented."""
        return self._in_order(self._store, self._val)

    def test_batches(self) -> Batches:
        """Return all of the test set, in fixed order, not augmented. Raises UserError as read_test does."""
        store = ImageStore(self.read_test(), self._store.device)
        return self._in_order(store, torch.arange(len(store.labels)))

    def read_test(self) -> Images:
        """Return the test set, read at the first call and kept; its shape and classes are checked.

        Raises UserError when it cannot be read, or is not like the training set.
        """
        if self._test is None:
            source = self.cfg.read(TEST)
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
            _warn_empty(source, "test", "the network is not tested on it")
            self._test = source
            digest = _sha256(source.images, source.labels)
            self.test_fingerprint = {"test_sha256": digest, "test_size": len(source.labels)}
        return self._test

    def _in_order(self, store: ImageStore, index: Tensor) -> Batches:
        for part in index.to(store.images.device).split(self.eval_batch_size):
            pixels, labels = store.gather(part)
            yield self._preparation.plain(pixels), labels


def _check(cfg: Data, source: Images, sizes: tuple[int, int], batch_size: int) -> None:
    train, val = sizes
    if not val:
        raise UserError(
            f"No class of {cfg.name} has two training images, so none is left for validation: add images."
        )
    check_fits(cfg, batch_size, train, min(source.images.shape[1:3]))
    _warn_empty(source, "training", "the network cannot learn it")


def _warn_empty(source: Images, split: str, consequence: str) -> None:
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
