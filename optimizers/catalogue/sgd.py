"""Stochastic gradient descent."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peakpoint.base.given import BELOW_ONE, require_range
from peakpoint.base.registry import register
from peakpoint.optimizers.settings import Optimizer

if TYPE_CHECKING:
    import torch


@register("optimizer", "sgd")
@dataclass(kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Polyak 1964; Nesterov as in Sutskever et al. 2013)."""

    state: ClassVar[tuple[str, ...] | None] = ("momentum_buffer",)
    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        Optimizer.__post_init__(self)
        require_range(self, "optimizer.", 0, BELOW_ONE, "momentum")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov=true needs optimizer.momentum above 0.")

    def build(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        """torch's SGD over groups of `param_groups`."""
        from peakpoint.optimizers.sgd import build_sgd

        return build_sgd(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)
