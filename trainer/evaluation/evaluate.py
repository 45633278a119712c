"""Measure a network again, on the data that its run was trained with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peakpoint.base import registry
from peakpoint.base.errors import UserError
from peakpoint.trainer.data import roots, sources  # noqa: F401 (sources registers)
from peakpoint.trainer.data.images import Images
from peakpoint.trainer.data.pipeline import DataModule, build_data
from peakpoint.trainer.data.readers import load_npz
from peakpoint.trainer.data.settings import TEST
from peakpoint.trainer.evaluation.metrics import Classification, autocast_for, evaluate


@dataclass(frozen=True)
class Evaluation:
    """`metrics` over `samples` images of a split."""

    metrics: dict[str, float]
    samples: int
    split: str


def data_of(
    config: Mapping[str, Any],
    fingerprint: Mapping[str, Any] | None,
    *,
    root: str | None,
    device: torch.device,
) -> DataModule:
    """The data of a run, from its resolved configuration; `root` is its folder when it was moved.

    Raises UserError when it cannot be read, or is other data than `fingerprint` tells of.
    """
    typed = _data(config, root)
    try:
        sizes = {name: int(config[name]) for name in ("seed", "batch_size", "eval_batch_size")}
        channels_last = bool(config["channels_last"])
    except (KeyError, TypeError, ValueError):
        raise _unknown_data() from None
    roots.note(typed.root, by_record=root is None)
    data = build_data(typed, **sizes, device=device, channels_last=channels_last)
    if fingerprint is not None and dict(fingerprint) != data.fingerprint:
        raise UserError(
            f"{typed.root or typed.name} is not the data that the run was trained with: "
            "its fingerprint differs."
        )
    return data


def _data(config: Mapping[str, Any], root: str | None) -> Any:
    try:
        given = {**config["data"], **({"root": root} if root else {})}
        name = given["name"]
    except (KeyError, TypeError):
        raise _unknown_data() from None
    if name not in registry.table("data"):  # of a plugin
        raise UserError(f"{registry.unknown('data', name)} {registry.hint(config)}.")
    try:
        return registry.make("data", name, given)
    except ValueError:
        raise _unknown_data() from None


def _unknown_data() -> UserError:
    return UserError("The checkpoint does not say which data it was trained with.")


def measure(network: nn.Module, data: DataModule, config: Mapping[str, Any], split: str) -> Evaluation:
    """The metrics of a network over a split of its run's data, in the arithmetic of the run."""
    batches = data.val_batches() if split == "val" else data.test_batches()
    return measure_batches(network, batches, data.num_classes, config, split)


def measure_batches(
    network: nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    num_classes: int,
    config: Mapping[str, Any],
    name: str,
) -> Evaluation:
    """The metrics of a network over any batches, in the arithmetic of its run; `name` is the split's."""
    device = next(network.parameters()).device
    if config["channels_last"]:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    metrics = Classification(num_classes, device)
    found = evaluate(
        network, batches, metrics, autocast=autocast_for(device, bf16=config["precision"] == "bf16")
    )
    return Evaluation(found, metrics.count, name)


def other_images(config: Mapping[str, Any], path: Path) -> Images:
    """Images that a run has not seen: an .npz of `images` and `labels`, or the test set in a folder.

    The folder is laid out as `data.root` of the run. Raises UserError.
    """
    if path.is_file():
        return load_npz(path)
    if not _data(config, None).root:
        name = config["data"]["name"]
        raise UserError(f"{path} is no file, and {name} is read from no folder: give an .npz file.")
    return _data(config, str(path)).read(TEST)
