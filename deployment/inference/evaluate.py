"""Evaluation of a network on the data of its run, which a checkpoint or a release records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import objects, serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.inference.network import Description, prepare

if TYPE_CHECKING:
    from peakpoint.trainer.data.pipeline import DataModule

SPLITS = ("val", "test")


@dataclass(frozen=True)
class Measured:
    """`metrics` over `samples` images of a split."""

    metrics: dict[str, float]
    samples: int
    split: str


def trained_with(root: Path, manifest: Manifest) -> Mapping[str, Any]:
    """Return the resolved `config` and data `fingerprint` of the run of a verified checkpoint.

    A checkpoint of the trainer holds both; a release has them in its manifest. Raises CheckpointError.
    """
    try:
        if manifest.tier == listing.PRODUCTION:
            facts = (manifest.metadata or {})["trained_with"]
            config, fingerprint = dict(facts["config"]), dict(facts["fingerprint"])
        else:
            saved = serialize.load(root / manifest.file)
            config, fingerprint = dict(saved["config"]), dict(saved["metadata"]["data"])
        if missing := {"data", "precision", "channels_last", "eval_batch_size"} - config.keys():
            raise KeyError(*missing)
        return {"config": config, "fingerprint": fingerprint}
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{root / manifest.file} does not say which data it was trained with, so it cannot be measured "
            "again: only what the trainer saved can, and releases of it."
        ) from None


def data_of(
    trained_with: Mapping[str, Any],
    *,
    data_root: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> DataModule:
    """Return the data of a run from `trained_with`; `data_root` is their directory if they were moved.

    Raises CheckpointError when they cannot be read or have another fingerprint.
    """
    from peakpoint.trainer.evaluation import evaluate

    root = str(data_root) if data_root else None
    with _one_line():
        return evaluate.data_of(
            trained_with["config"], trained_with["fingerprint"], root=root, device=usable(device)
        )


def measure(
    network: nn.Module,
    trained_with: Mapping[str, Any],
    *,
    split: str = "val",
    data_root: str | Path | None = None,
    device: str | torch.device = "cpu",
    data: DataModule | None = None,
) -> Measured:
    """Return the metrics of a network over a split of its run's data, in the arithmetic of the run.

    `data` is the result of `data_of`, for several networks of a run to share. The network is moved to
    `device`. Raises CheckpointError as `data_of` does.
    """
    from peakpoint.trainer.evaluation import evaluate

    if split not in SPLITS:
        raise CheckpointError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if data is None:
        data = data_of(trained_with, data_root=data_root, device=device)
    objects.move(network, usable(device))
    with _one_line():
        found = evaluate.measure(network, data, trained_with["config"], split)
    return Measured(found.metrics, found.samples, found.split)


def measure_other(
    network: nn.Module,
    description: Description,
    trained_with: Mapping[str, Any],
    path: Path,
    *,
    device: str | torch.device = "cpu",
) -> Measured:
    """Return the metrics of a network over images that its run has not seen, in the arithmetic of the run.

    `path` is an .npz of images and labels, or a folder laid out as the run's `data.root`, whose test set is
    used. Raises CheckpointError when it cannot be read or has other classes or channels.
    """
    from peakpoint.trainer.evaluation import evaluate

    config = trained_with["config"]
    with _one_line():
        found = evaluate.other_images(config, path)
    _check_fits(path, found.classes, found.images.shape[3], description)
    where = usable(device)
    objects.move(network, where)
    size = int(config["eval_batch_size"])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in zip(found.images.split(size), found.labels.split(size), strict=True):
            yield prepare(images.to(where), description), labels.to(where)

    with _one_line():
        done = evaluate.measure_batches(network, batches(), len(description.classes), config, path.name)
    return Measured(done.metrics, done.samples, done.split)


def _check_fits(path: Path, classes: tuple[str, ...], channels: int, description: Description) -> None:
    known = description.classes
    numbers = tuple(map(str, range(len(classes))))
    if len(classes) > len(known) or classes not in (known[: len(classes)], numbers):
        raise CheckpointError(
            f"{path} has the classes {', '.join(classes[:3])}, ... ({len(classes)}), and the network knows "
            f"{', '.join(known[:3])}, ... ({len(known)})."
        )
    if channels != description.image_shape[0]:
        raise CheckpointError(
            f"{path} has images of {channels} channels, and the network takes {description.image_shape[0]}."
        )


def sparsity(network: nn.Module) -> float:
    """Return the fraction of zeros among the prunable weights, as the trainer measures it."""
    from peakpoint.optimizers.kinds import zeros

    return zeros(network).prunable


def batches(data: DataModule, split: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield prepared images and labels of a split of a run's data, in fixed order.

    The first call for the test split reads it. Raises CheckpointError.
    """
    if split not in SPLITS:
        raise CheckpointError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    with _one_line():
        return data.val_batches() if split == "val" else data.test_batches()


def usable(device: str | torch.device) -> torch.device:
    """Return a usable device; auto is cuda where torch finds one, else cpu. Raises CheckpointError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found).item()  # fails on a device without memory, such as meta
    except (RuntimeError, AssertionError, NotImplementedError):
        raise CheckpointError(
            f"There is no device {str(device)!r} here: use cpu, or cuda where torch finds it."
        ) from None
    return found


@contextmanager
def _one_line() -> Iterator[None]:
    from peakpoint.base.errors import UserError

    try:
        yield
    except UserError as error:
        raise CheckpointError(str(error)) from None
