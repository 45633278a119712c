"""The disk space that runs take, counted on the meta device: of one before it starts, and of a sweep."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakpoint.base import registry
from peakpoint.base.disk_space import free_room, in_words
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.terminal import Console
from peakpoint.optimizers.pruning.criterion import Accumulating

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

NEWEST, IN_FLIGHT = "newest", "in flight"
OVERHEAD, PER_TENSOR = 24_000, 300
"""Bytes of the random number generators and the configuration, and of each tensor in the file's index."""


def check_room(folder: Path, jobs: Iterable[Any], trials: int | None = None) -> None:
    """Compare what the jobs of a sweep will store, by their configurations, with what is free in its folder.

    With `trials`, that many are drawn, each like one of the jobs. Raises UserError where not even one
    checkpoint of each job fits, and warns where all that its policies keep may not fit. A job whose data must
    be read to know its network is not counted.
    """
    free, _ = free_room(folder)
    sizes: list[tuple[int, int]] = []
    known: dict[str, tuple[int, int]] = {}
    for config in jobs:
        facts = config.data.facts
        if not (facts.images and facts.side and facts.channels and facts.classes):
            continue
        key = repr((config.model, config.optimizer, config.data, config.pruning.target, config.checkpoint))
        key += repr((config.epochs, config.max_steps, config.batch_size))
        if key not in known:
            found, batches = built(config)
            one = found.stored(config.pruning.target, compress=config.checkpoint.compress)
            known[key] = one, one * sum(number or 0 for number in kept(config, batches).values())
        sizes.append(known[key])
    ones, all_kept = [one for one, _ in sizes], [most for _, most in sizes]
    least, most = sum(ones), sum(all_kept)
    if trials is not None:
        least, most = max(0, trials) * min(ones, default=0), max(0, trials) * max(all_kept, default=0)
    if free is None or most <= free:
        return
    if least > free:
        raise UserError(
            f"This sweep stores at least {in_words(least)}, one checkpoint of each job, and {in_words(free)} "
            f"are free in {folder}: make room, or name another disk with hydra.sweep.dir."
        )
    Console().say(
        f"This sweep may store up to {in_words(most)}, and {in_words(free)} are free in {folder}: make room, "
        "or let its policies keep less."
    )


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a network and its optimizer; `weights` and `state` are bytes, `state` without masks.

    `prunable` counts elements that pruning may zero, `moments` the values kept with each (2 for Adam).
    """

    parameters: int
    weights: int
    state: int
    prunable: int
    moments: int
    tensors: int

    def checkpoint(self, *, pruned: bool) -> int:
        """Return the bytes of a dense training checkpoint, with packed masks when it is `pruned`."""
        masks = math.ceil(self.prunable / 8) if pruned else 0
        return self.weights + self.state + masks + OVERHEAD + PER_TENSOR * self.tensors

    def compressed(self, sparsity: float) -> int:
        """Return the bytes with zeros packed away: one mask, and the values that are not zero."""
        zeros = math.ceil(sparsity * self.prunable)
        return self.checkpoint(pruned=sparsity > 0) - 4 * zeros * (1 + self.moments)

    def stored(self, sparsity: float, *, compress: bool) -> int:
        """Return the bytes of a checkpoint as a run of that sparsity writes it."""
        return self.compressed(sparsity) if compress else self.checkpoint(pruned=sparsity > 0)


def _measure(model: "nn.Module", optimizer: "Optimizer") -> Sizes:
    """Count a network on the meta device and the state of its optimizer; takes one optimizer step."""
    import torch

    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    weights = [p for group in optimizer.param_groups if group.get("prunable") for p in group["params"]]
    moments = [
        sum(isinstance(v, torch.Tensor) and v.shape == p.shape for v in optimizer.state[p].values())
        for p in weights
    ]
    stored = list(model.state_dict().values())
    return Sizes(
        parameters=sum(p.numel() for p in parameters),
        weights=sum(t.nbytes for t in stored),
        state=sum(t.nbytes for t in kept),
        prunable=sum(p.numel() for p in weights),
        moments=max(moments, default=0),
        tensors=len(stored) + len(kept),
    )


def built(config: Any) -> tuple[Sizes, int]:
    """Return the sizes of a configuration, and the batches in an epoch."""
    shape, classes, images = _source(config.data)
    return measured(config, shape, classes), round(
        images * (1 - config.data.val_fraction)
    ) // config.batch_size


def measured(config: Any, shape: tuple[int, int, int], classes: int) -> Sizes:
    """Return the sizes for images (channels, height, width) and a number of classes.

    Raises CheckpointError for a network that cannot be built.
    """
    import torch

    from peakpoint.trainer.build import build_model, build_optimizer

    try:
        with torch.device("meta"):
            model = build_model(config.model, shape, classes)
            found = _measure(model, build_optimizer(config.optimizer, model, config.pruning.scope))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    pruning = config.pruning
    if not pruning.target or not issubclass(registry.find("criterion", pruning.criterion), Accumulating):
        return found
    # Its sums are float32, and zero where a weight is pruned, like a moment.
    return replace(found, state=found.state + 4 * found.prunable, moments=found.moments + 1)


def _source(data: Any) -> tuple[tuple[int, int, int], int, int]:
    facts = data.facts
    if facts.images and facts.side and facts.channels and facts.classes:
        shape, classes, images = (facts.channels, facts.side, facts.side), facts.classes, facts.images
    else:
        read = data.read("train")
        height, width, channels = read.images.shape[1:]
        shape, classes, images = (channels, height, width), len(read.classes), len(read.labels)
    if data.image_size is not None:
        shape = (shape[0], data.image_size, data.image_size)
    return shape, classes, images


def kept(config: Any, batches: int) -> dict[str, int | None]:
    """Return the most checkpoints that each policy keeps at once; None for a policy that is not known."""
    from peakpoint.trainer.build import outlook

    run = outlook(config, max(1, batches))
    found = {name: policy.at_most(run) for name, policy in config.checkpoint.policy.items()}
    return {**found, NEWEST: 1, IN_FLIGHT: 1}
