"""How many bytes a training checkpoint takes, counted on the meta device: nothing is computed or stored."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

OVERHEAD, PER_TENSOR = 24_000, 300
"""Bytes that are no weight: the random number generators and the configuration; the file's index."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes. `prunable` are elements of weights that pruning may zero, `moments` what the optimizer keeps for
    each of them (2 for Adam), `state` all that the optimizer keeps, masks apart.
    """

    parameters: int
    weights: int
    state: int
    prunable: int
    moments: int
    tensors: int = 0

    def checkpoint(self, *, pruned: bool) -> int:
        """A dense training checkpoint, with packed masks when it is `pruned`."""
        masks = math.ceil(self.prunable / 8) if pruned else 0
        return self.weights + self.state + masks + OVERHEAD + PER_TENSOR * self.tensors

    def compressed(self, sparsity: float) -> int:
        """The same with zeros packed away: the mask is paid for once, of the values what is kept stays."""
        zeros = math.ceil(sparsity * self.prunable)
        return self.checkpoint(pruned=sparsity > 0) - 4 * zeros * (1 + self.moments)


def measure(model: "nn.Module", optimizer: "Optimizer") -> Sizes:
    """Count a network on the meta device and what its optimizer will keep; takes one optimizer step."""
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


def gpt2(layers: int, width: int) -> Sizes:
    """GPT-2 with AdamW: vocabulary 50257, context 1024 (Radford et al. 2019), float32, tied embeddings."""
    linear = 12 * layers * width**2
    parameters = (50257 + 1024) * width + linear + 13 * layers * width + 2 * width
    return Sizes(
        parameters=parameters,
        weights=4 * parameters,
        state=8 * parameters,
        prunable=linear,
        moments=2,
        tensors=3 * (12 * layers + 4),
    )
