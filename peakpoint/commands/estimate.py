"""estimate: the storage of a run before it starts, counted on the meta device. Imports torch when called."""

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import Console
from peakpoint.commands.arguments import Argument, takes
from peakpoint.commands.common import print_json
from peakpoint.trainer.config import check, choices, commandline

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

NEWEST, IN_FLIGHT = "newest", "in flight"
OVERHEAD, PER_TENSOR = 24_000, 300
"""Bytes of the random number generators and the configuration, and of each tensor in the file's index."""


@takes(Argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train"))
def estimate(options: argparse.Namespace) -> int:
    """Print the bytes that a run of this configuration will store."""
    choices.register_schemas()
    config = check.composed(commandline.overrides(options.overrides))
    sizes, batches = _built(config)
    sparsity = config.pruning.target
    dense, packed = sizes.checkpoint(pruned=sparsity > 0), sizes.compressed(sparsity)
    kept = _kept(config, batches)
    count = sum(number for number in kept.values() if number is not None)
    found = {
        "network": config.model.name,
        "optimizer": config.optimizer.name,
        "sparsity": sparsity,
        "parameters": sizes.parameters,
        "weights_bytes": sizes.weights,
        "optimizer_bytes": sizes.state,
        "checkpoint_bytes": dense,
        "compressed_bytes": packed,
        "kept": kept,
        "peak_bytes": count * dense,
        "compressed_peak_bytes": count * packed,
    }
    if options.json:
        print_json(found)
        return 0
    console = Console()
    console.say(f"{config.model.name}, {config.optimizer.name}: {sizes.parameters:,} parameters")
    console.say(f"weights {in_words(sizes.weights)}, optimizer state {in_words(sizes.state)}")
    compressed = f"at sparsity {sparsity:g} compressed"
    rows: list[list[object]] = []
    for name, number in [("one checkpoint", 1), *kept.items(), ("peak on disk", count)]:
        values: list[object] = (
            ["-"] * 3 if number is None else [number, in_words(number * dense), in_words(number * packed)]
        )
        rows.append([name, *values])
    console.table(["", "checkpoints at most", "dense", compressed], rows)
    console.say("At most: roles that share a checkpoint share its bytes.")
    return 0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a network and its optimizer; `weights` and `state` are bytes, `state` without masks.

    `prunable` counts elements that pruning may zero, `moments` the optimizer's values for each (2 for Adam).
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


def _built(config: Any) -> tuple[Sizes, int]:
    """Return the sizes of a configuration, and the batches in an epoch."""
    import torch

    from peakpoint.trainer.build import build_model, build_optimizer

    shape, classes, images = _source(config.data)
    try:
        with torch.device("meta"):
            model = build_model(config.model, shape, classes)
            sizes = _measure(model, build_optimizer(config.optimizer, model))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return sizes, round(images * (1 - config.data.val_fraction)) // config.batch_size


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


def _kept(config: Any, batches: int) -> dict[str, int | None]:
    """Return the most checkpoints that each policy keeps at once; None for a policy that is not known."""
    from peakpoint.trainer.build import outlook

    run = outlook(config, max(1, batches))
    kept = {name: policy.at_most(run) for name, policy in config.checkpoint.policy.items()}
    return {**kept, NEWEST: 1, IN_FLIGHT: 1}
