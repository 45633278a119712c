"""Loads a checkpoint into a model, optimizer and schedule; resumes a training from one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peakpoint.base import given
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import objects, serialize
from peakpoint.checkpointing.state.objects import Stateful
from peakpoint.checkpointing.storage import listing, locate
from peakpoint.checkpointing.storage.manifest import SAFETENSORS
from peakpoint.deployment.inference import weights
from peakpoint.library import others
from peakpoint.library.recorder import MODE


def load_checkpoint(
    path: str | Path,
    model: nn.Module,
    optimizer: Stateful | None = None,
    scheduler: Stateful | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Verify a checkpoint, load it into objects, and return the rest of it: epoch, metrics, config.

    `device` is where the model is moved; None leaves it. `latest.pt`, `best_accuracy.pt` and
    `best_accuracy_0.92.pt` mean the newest intact checkpoint of that name. Weights that another program saved
    are loaded as well, with a warning that their bytes cannot be verified. Raises CheckpointError for a
    damaged file or one that does not fit. Never executes code from the file.
    """
    return _load(path, model, optimizer, scheduler, device=device, rng=False)


def resume_training(
    path: str | Path,
    model: nn.Module,
    optimizer: Stateful,
    scheduler: Stateful | None = None,
) -> dict[str, Any]:
    """Load a checkpoint and every random number generator with it: training continues where it was.

    The state that is returned says where: batch `next_batch`, counted from 0, of epoch `next_epoch`.
    A checkpoint that does not say how far its epoch was begins it again, so that no batch is skipped.
    """
    state = _load(path, model, optimizer, scheduler, device=None, rng=True)
    if "epoch_complete" in state:
        done = state["epoch_complete"]
        state["next_epoch"] = state["epoch"] + done
        state["next_batch"] = 0 if done else state["batch"] or 0
    return state


def _load(
    path: str | Path,
    model: nn.Module,
    optimizer: Stateful | None,
    scheduler: Stateful | None,
    *,
    device: str | torch.device | None,
    rng: bool,
) -> dict[str, Any]:
    path = given.path(path)
    given.network(model)
    given.stateful("optimizer", optimizer, optional=not rng)
    given.stateful("scheduler", scheduler, optional=True)
    if not others.are_at(path):
        saved: Mapping[str, Any] = _own(path)
    elif rng:
        raise CheckpointError(
            f"{path} holds no random number generators as Peakpoint saves them, so training cannot continue "
            "exactly: load_checkpoint(path, model, optimizer, scheduler) loads the rest of it."
        )
    else:
        saved = others.load(path, model)
    if device is not None:
        objects.move(model, device)
    return objects.restore(saved, model, optimizer, scheduler, rng=rng)


def _own(path: Path) -> dict[str, Any]:
    root, manifest = locate.locate(path)
    file = root / manifest.file
    if file.suffix == SAFETENSORS:
        saved: dict[str, Any] = {
            "epoch": manifest.epoch,
            "global_step": manifest.global_step,
            "config": manifest.config,
            "model_state_dict": weights.read(file),
            "model_version": listing.version_of(manifest),
        }
    else:
        saved = serialize.load(file)
    # Roles that share a file have metrics of their own, and a direction in which each is better.
    saved["metrics"] = dict(manifest.metrics)
    if (mode := (manifest.metadata or {}).get(MODE)) is not None:
        saved["metadata"] = {**(saved.get("metadata") or {}), MODE: mode}
    return saved
