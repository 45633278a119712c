"""AdamWPrune: AdamW whose own state decides what to prune, with no extra importance buffers."""

from typing import Any

import torch

from peakpoint.optimizers.kernels import fused_for, keep_strides
from peakpoint.optimizers.pruning.pruner import Pruner
from peakpoint.optimizers.pruning.settings import PruneSettings


class AdamWPrune(torch.optim.AdamW):
    """AdamW with a Pruner of its own, over groups from `param_groups`.

    One state_dict holds the moments, the masks and the schedule's counter; `pruner` reports them.
    The same Pruner attaches to any other optimizer.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        settings: PruneSettings,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        amsgrad: bool,
    ) -> None:
        fused = fused_for(groups)
        super().__init__(groups, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad, fused=fused, foreach=not fused)
        keep_strides(self)
        self.pruner = Pruner(self, settings)
