"""Stochastic gradient descent with momentum (Polyak 1964; Nesterov as in Sutskever et al. 2013)."""

from typing import Any

import torch

from peakpoint.optimizers.kernels import fused_for, keep_strides


def build_sgd(groups: list[dict[str, Any]], *, lr: float, momentum: float, nesterov: bool) -> torch.optim.SGD:
    """torch's SGD over groups from `param_groups`, which carry the weight decay."""
    fused = fused_for(groups)
    optimizer = torch.optim.SGD(
        groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused, foreach=not fused
    )
    keep_strides(optimizer)
    return optimizer
