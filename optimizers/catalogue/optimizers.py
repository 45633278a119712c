"""The optimizers. Weight decay comes with the groups; torch is imported when one is built."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakpoint.base.given import BELOW_ONE, INF, require_range
from peakpoint.base.registry import register
from peakpoint.optimizers.settings import Optimizer

if TYPE_CHECKING:
    import torch


@register("optimizer", "sgd")
@dataclass(kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum (Polyak 1964; Nesterov as in Sutskever et al. 2013)."""

    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        Optimizer.__post_init__(self)
        require_range(self, "optimizer.", 0, BELOW_ONE, "momentum")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov=true needs optimizer.momentum above 0.")

    @property
    def state(self) -> tuple[str, ...]:
        """Return the names of the tensors that it keeps for each weight."""
        return ("momentum_buffer",) if self.momentum else ()

    def build(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        """Return torch's SGD over groups of `param_groups`."""
        import torch

        from peakpoint.optimizers.kernels import quickest

        kernel = quickest(groups)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, **kernel)


@register("optimizer", "adam")
@dataclass(kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2014, arXiv:1412.6980); weight decay is added to the gradient."""

    beta1: float
    beta2: float
    eps: float
    amsgrad: bool

    def __post_init__(self) -> None:
        Optimizer.__post_init__(self)
        require_range(self, "optimizer.", 0, BELOW_ONE, "beta1 beta2")
        require_range(self, "optimizer.", 0, INF, "eps")

    @property
    def state(self) -> tuple[str, ...]:
        """Return the names of the tensors that it keeps for each weight."""
        return ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if self.amsgrad else []))

    def build(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        """Return torch's Adam over groups of `param_groups`."""
        import torch

        return self._build(torch.optim.Adam, groups)

    def _build(self, kind: "type[torch.optim.Adam]", groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        from peakpoint.optimizers.kernels import quickest

        betas, kernel = (self.beta1, self.beta2), quickest(groups)
        return kind(groups, lr=self.lr, betas=betas, eps=self.eps, amsgrad=self.amsgrad, **kernel)


@register("optimizer", "adamw")
@dataclass(kw_only=True)
class AdamW(Adam):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101); weight decay is applied to the weights."""

    def build(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        """Return torch's AdamW over groups of `param_groups`."""
        import torch

        return self._build(torch.optim.AdamW, groups)


@register("optimizer", "adamwprune")
@dataclass(kw_only=True)
class AdamWPrune(AdamW):
    """AdamW whose own state decides what to prune; brings `pruning=state`."""


@register("optimizer", "adamwspam")
@dataclass(kw_only=True)
class AdamWSPAM(AdamW):
    """AdamW with spike-aware clipping and momentum reset (Huang et al. 2025, arXiv:2501.06842)."""

    spike_threshold: float
    reset_interval: int
    reset_warmup: int

    def __post_init__(self) -> None:
        AdamW.__post_init__(self)
        require_range(self, "optimizer.", 1, INF, "spike_threshold")
        require_range(self, "optimizer.", 0, INF, "reset_interval reset_warmup")

    def build(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        """Return torch's AdamW with SPAM attached, over groups of `param_groups`."""
        from peakpoint.optimizers.clipping import Spam

        optimizer = AdamW.build(self, groups)
        Spam(optimizer, self.spike_threshold, self.reset_interval, self.reset_warmup)
        return optimizer
