"""The weights of a release: pruned ones exactly zero, in the dtype of its form."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage.manifest import SAFETENSORS
from peakpoint.deployment.inference import form
from peakpoint.optimizers.pruning.masks import unpack

log = logging.getLogger("peakpoint")

DTYPES = {name: getattr(torch, name) for name in form.DTYPES}


def read(file: Path) -> dict[str, Any]:
    """Return the weights of a release on the CPU. Raises CheckpointError when the file is not one."""
    if file.suffix != SAFETENSORS:
        return within(serialize.load(file), file)
    return read_safetensors(file)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file on the CPU. Raises CheckpointError for any other file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: dict[str, Tensor] = load_file(file)
        return found
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be opened as safetensors: {error}.") from None


def within(saved: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the weights in the contents of a checkpoint. Raises CheckpointError when there are none."""
    found = saved.get("model_state_dict")
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} has no model_state_dict: it is not a checkpoint of a network.")
    return found


def of_checkpoint(saved: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return the weights in the contents of a training checkpoint, with its pruning masks applied.

    Raises CheckpointError when the masks do not fit the weights.
    """
    weights = dict(within(saved, file))
    for name, mask in masks(saved, weights).items():
        weight = weights[name]
        weights[name] = masked(weight, mask)
        if (revived := int((weights[name] != weight).sum())) > 0:
            log.warning("%d pruned weights of %s were not zero: they are zero in the release.", revived, name)
    return weights


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    """Return a weight with exact zeros where its mask is False."""
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype))


def masks(saved: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the pruning masks in the contents of a training checkpoint by the name of their weight.

    Raises CheckpointError when they do not fit the weights.
    """
    try:
        optimizer = saved.get("optimizer_state_dict") or {}
        packed = (optimizer.get("pruning") or {}).get("masks") or []
        groups = [group for group in optimizer["param_groups"] if group.get("prunable")] if packed else []
        names = [name for group in groups for name in group["param_names"]]
        return {name: unpack(bits, weights[name]) for name, bits in zip(names, packed, strict=True)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).rstrip(".")
        raise CheckpointError(f"The pruning masks do not fit the weights: {reason}.") from None


def cast(weights: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the weights with every floating-point tensor in `dtype`.

    Raises CheckpointError when a finite value is beyond the range of the type.
    """
    if dtype == form.KEPT:
        return dict(weights)
    wanted = DTYPES[dtype]
    found = {}
    for name, tensor in weights.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != wanted:
            done = tensor.to(wanted)
            if bool((tensor.isfinite() & ~done.isfinite()).any()):
                raise CheckpointError(
                    f"{name} holds values beyond the range of {dtype}: use dtype=float32 or bfloat16."
                )
            tensor = done
        found[name] = tensor
    return found


def shapes(weights: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shape of each tensor by name."""
    return {name: list(value.shape) for name, value in weights.items() if isinstance(value, Tensor)}


def plain(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights contiguous, each with memory of its own, as safetensors requires.

    Raises CheckpointError for a value that is not a tensor.
    """
    found = {}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{name} is of type {type(value).__name__}: safetensors holds tensors alone, use format=pt."
            )
        found[name] = value.detach().to("cpu").contiguous().clone()
    return found
