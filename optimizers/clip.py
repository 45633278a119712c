"""Clipping of the gradient's norm (Pascanu et al. 2013, arXiv:1211.5063)."""

from typing import Any

import torch
from torch.optim import Optimizer

from peakpoint.optimizers.kernels import require_unscaled


def clip_gradients(optimizer: Optimizer, max_norm: float) -> None:
    """Have every step of `optimizer` first scale its gradients to a global norm of at most `max_norm`.

    Hooks run in the order of their registration: call this after attaching a Pruner, so that the gradients
    of pruned weights do not count.
    """

    def clip(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        require_unscaled(optimizer)
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(params, max_norm)

    optimizer.register_step_pre_hook(clip)
