"""Fused optimizer kernels: where torch has them, and what they need.

torch's fused CPU kernels walk a parameter, its gradient and its state in memory order and ignore strides.
A channels_last weight with a contiguous moment is then updated with the moments of other weights, without
any error. Fresh state takes the parameter's strides, and so do the gradients that autograd makes; state
that was loaded keeps the strides it was saved with, which `keep_strides` mends.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_FUSED_DEVICES = ("cpu", "cuda")


def fused_supported(params: Iterable[Tensor]) -> bool:
    """Whether torch's fused kernels take every one of these parameters."""
    return all(p.device.type in _FUSED_DEVICES and p.is_floating_point() for p in params)


def fused_for(groups: list[dict[str, Any]]) -> bool:
    """Whether the fused kernel can be used for all of these parameter groups; foreach is next best."""
    return fused_supported(p for group in groups for p in group["params"])


def keep_strides(optimizer: Optimizer) -> None:
    """Have `optimizer` give loaded state tensors the strides of their parameters."""
    optimizer.register_load_state_dict_post_hook(_restride)


def _restride(optimizer: Optimizer) -> None:
    for param, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == param.shape and value.stride() != param.stride():
                state[key] = torch.empty_like(param, dtype=value.dtype).copy_(value)


def step_was_skipped(optimizer: Optimizer) -> bool:
    """Whether a gradient scaler told the fused kernel to leave this step out.

    With a fused optimizer the scaler calls step() even then, and the kernel alone looks at `found_inf`;
    hooks run all the same. Without a scaler this costs no synchronisation.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and float(found) != 0


def require_unscaled(optimizer: Optimizer) -> None:
    """Raise ValueError when a gradient scaler has left the gradients scaled."""
    if getattr(optimizer, "grad_scale", None) is not None:
        raise ValueError("Gradients are still scaled: call scaler.unscale_(optimizer) before its step.")
