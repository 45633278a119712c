"""Evaluation of a network on the data of its run, which a checkpoint or a release records."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peakpoint.base import registry
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.text import nearest
from peakpoint.checkpointing.state import objects, serialize
from peakpoint.checkpointing.storage.manifest import PRODUCTION, Manifest
from peakpoint.deployment.inference.form import SPLITS
from peakpoint.deployment.inference.network import Description, prepare
from peakpoint.trainer.data import sources  # noqa: F401 (registers)
from peakpoint.trainer.data.images import load_npz
from peakpoint.trainer.data.pipeline import Batches, DataModule
from peakpoint.trainer.data.settings import TEST, note_root
from peakpoint.trainer.evaluation import Classification, autocast_for, evaluate


@dataclass(frozen=True)
class Measured:
    """`metrics` over `samples` images of a split."""

    metrics: dict[str, float]
    samples: int
    split: str


@contextmanager
def _reading() -> Iterator[None]:
    """Raise CheckpointError in place of the trainer's UserError, as this floor does."""
    try:
        yield
    except UserError as error:
        raise CheckpointError(str(error)) from None


def trained_with(root: Path, manifest: Manifest) -> Mapping[str, Any]:
    """Return the resolved `config` and data `fingerprint` of the run of a verified checkpoint.

    A checkpoint of the trainer holds both; a release has them in its manifest. Raises CheckpointError.
    """
    try:
        if manifest.tier == PRODUCTION:
            facts = (manifest.metadata or {})["trained_with"]
            config, fingerprint = dict(facts["config"]), dict(facts["fingerprint"])
        else:
            saved = serialize.load(root / manifest.file)
            config, fingerprint = dict(saved["config"]), dict(saved["metadata"]["data"])
        if missing := {"data", "precision", "channels_last", "eval_batch_size"} - config.keys():
            raise KeyError(*missing)
        return {"config": config, "fingerprint": fingerprint}
    except (KeyError, TypeError, ValueError):
        raise _unknown(str(root / manifest.file)) from None


@_reading()
def data_of(
    trained_with: Mapping[str, Any],
    *,
    data_root: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> DataModule:
    """Return the data of a run from `trained_with`; `data_root` is their directory if they were moved.

    Raises CheckpointError when they cannot be read or have another fingerprint.
    """
    config = trained_with["config"]
    settings = _settings(config, data_root)
    try:
        sizes = {name: int(config[name]) for name in ("seed", "batch_size", "eval_batch_size")}
    except (KeyError, TypeError, ValueError):
        raise _unknown("The checkpoint") from None
    note_root(settings.root, by_record=data_root is None)
    data = DataModule(settings, **sizes, device=usable(device), channels_last=bool(config["channels_last"]))
    if trained_with["fingerprint"] not in (None, data.fingerprint):
        raise CheckpointError(
            f"{settings.root or settings.name} is not the data that the run was trained with: "
            "its fingerprint differs."
        )
    return data


def _settings(config: Mapping[str, Any], data_root: str | Path | None) -> Any:
    """Return the registered settings of a run's data."""
    try:
        given = {**config["data"], **({"root": str(data_root)} if data_root else {})}
        name = given["name"]
        if name not in registry.table("data"):  # of a plugin
            raise CheckpointError(f"{registry.unknown('data', name)} {registry.hint(config)}.")
        return registry.make("data", name, given)
    except (KeyError, TypeError, ValueError):
        raise _unknown("The checkpoint") from None


def _unknown(what: str) -> CheckpointError:
    return CheckpointError(
        f"{what} does not record which data it was trained with, so it cannot be measured: name a "
        "checkpoint of the trainer, or a release of one."
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
    if data is None:
        data = data_of(trained_with, data_root=data_root, device=device)
    objects.move(network, usable(device))
    return _measured(network, batches(data, split), data.num_classes, trained_with["config"], split)


@_reading()
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
    config = trained_with["config"]
    if path.is_file():
        found = load_npz(path)
    elif _settings(config, None).root:
        found = _settings(config, path).read(TEST)
    else:
        name = config["data"]["name"]
        raise CheckpointError(
            f"{name} is not read from a folder, and {path} is not a file: give an .npz file."
        )
    _check_fits(path, found.classes, found.images.shape[3], description)
    where, size = usable(device), int(config["eval_batch_size"])
    objects.move(network, where)
    parts = zip(found.images.split(size), found.labels.split(size), strict=True)
    prepared = ((prepare(images.to(where), description), labels.to(where)) for images, labels in parts)
    return _measured(network, prepared, len(description.classes), config, path.name)


def _measured(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    config: Mapping[str, Any],
    split: str,
) -> Measured:
    device = next(network.parameters()).device
    if config["channels_last"]:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    metrics = Classification(num_classes, device)
    autocast = autocast_for(device, bf16=config["precision"] == "bf16")
    return Measured(evaluate(network, batches, metrics, autocast=autocast), metrics.count, split)


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


@_reading()
def batches(data: DataModule, split: str) -> Batches:
    """Yield prepared images and labels of a split of a run's data, in fixed order.

    The first call for the test split reads it. Raises CheckpointError.
    """
    if split not in SPLITS:
        raise CheckpointError(f"split={split} is not a choice{nearest(split, SPLITS)}")
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
