"""Measure a network again, on the data that its run was trained with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from optimizers import groups
from trainer import config as c
from trainer.data import DataModule, build_data
from trainer.errors import UserError
from trainer.metrics import Classification, autocast_for, evaluate, measured_sparsity

SPLITS = ("val", "test")


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
    """The data of a run, from its resolved configuration; `root` says where it lies when it was moved.

    Raises UserError when it cannot be read, or is other data than `fingerprint` tells of.
    """
    try:
        given = {**config["data"], **({"root": root} if root else {})}
        schema = c.Synthetic if given["name"] == "synthetic" else c.Data
        typed: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
        sizes = {name: int(config[name]) for name in ("seed", "batch_size", "eval_batch_size")}
        channels_last = bool(config["channels_last"])
    except (KeyError, TypeError, ValueError, OmegaConfBaseException):
        raise UserError("The checkpoint does not say which data it was trained with.") from None
    data = build_data(typed, **sizes, device=device, channels_last=channels_last)
    if fingerprint is not None and dict(fingerprint) != data.fingerprint:
        raise UserError(
            f"{typed.root or typed.name} is not the data that the run was trained with: "
            "its fingerprint differs."
        )
    return data


def measure(network: nn.Module, data: DataModule, config: Mapping[str, Any], split: str) -> Evaluation:
    """The metrics of a network over a split of its run's data, in the arithmetic of the run."""
    device = next(network.parameters()).device
    batches = data.val_batches() if split == "val" else data.test_batches()
    if config["channels_last"]:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    metrics = Classification(data.num_classes, device)
    found = evaluate(
        network, batches, metrics, autocast=autocast_for(device, bf16=config["precision"] == "bf16")
    )
    return Evaluation(found, metrics.count, split)


def sparsity(network: nn.Module) -> float:
    """The fraction of zeros among the prunable weights of a network."""
    return measured_sparsity(groups.prunable_weights(network).values())
