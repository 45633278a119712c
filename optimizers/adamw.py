"""AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101): weight decay is applied to the weights."""

from typing import Any

import torch

from peakpoint.optimizers.kernels import fused_for, keep_strides


def build_adamw(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, amsgrad: bool
) -> torch.optim.AdamW:
    """torch's AdamW over groups from `param_groups`, which carry the weight decay."""
    fused = fused_for(groups)
    optimizer = torch.optim.AdamW(
        groups, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad, fused=fused, foreach=not fused
    )
    keep_strides(optimizer)
    return optimizer
