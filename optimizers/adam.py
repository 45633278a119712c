"""Adam (Kingma & Ba 2014, arXiv:1412.6980): weight decay is added to the gradient."""

from typing import Any

import torch

from peakpoint.optimizers.kernels import fused_for, keep_strides


def build_adam(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, amsgrad: bool
) -> torch.optim.Adam:
    """torch's Adam over groups from `param_groups`, which carry the weight decay."""
    fused = fused_for(groups)
    optimizer = torch.optim.Adam(
        groups, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad, fused=fused, foreach=not fused
    )
    keep_strides(optimizer)
    return optimizer
