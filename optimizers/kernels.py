"""Fused optimizer kernels: where torch has them, and what they need.

torch's fused CPU kernels walk a parameter, its gradient and its state in memory order and ignore strides.
A channels_last weight with a contiguous moment is then updated with the moments of other weights, without
any error. Fresh state takes the parameter's strides, and so do the gradients that autograd makes; state
that was loaded keeps the strides it was saved with, which `keep_strides` mends.
"""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_FUSED_DEVICES = ("cpu", "cuda")


def quickest(groups: list[dict[str, Any]]) -> dict[str, bool]:
    """Return the arguments that choose torch's fused kernel where it takes every parameter, else foreach."""
    params = [param for group in groups for param in group["params"]]
    fused = all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in params)
    return {"fused": fused, "foreach": not fused}


def keep_strides(optimizer: Optimizer) -> None:
    """Have `optimizer` give loaded state tensors the strides of their parameters."""
    optimizer.register_load_state_dict_post_hook(_restride)


def _restride(optimizer: Optimizer) -> None:
    for param, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == param.shape and value.stride() != param.stride():
                state[key] = torch.empty_like(param, dtype=value.dtype).copy_(value)
