"""Adam and its relatives."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peakpoint.base.given import BELOW_ONE, INF, require_range
from peakpoint.base.registry import register
from peakpoint.optimizers.settings import Optimizer

if TYPE_CHECKING:
    import torch


@register("optimizer", "adam")
@dataclass(kw_only=True)
class Adam(Optimizer):
    """Adam (Kingma & Ba 2014, arXiv:1412.6980); weight decay is added to the gradient."""

    state: ClassVar[tuple[str, ...] | None] = ("exp_avg", "exp_avg_sq")
    beta1: float
    beta2: float
    eps: float
    amsgrad: bool

    def __post_init__(self) -> None:
        Optimizer.__post_init__(self)
        require_range(self, "optimizer.", 0, BELOW_ONE, "beta1 beta2")
        require_range(self, "optimizer.", 0, INF, "eps")

    @property
    def betas(self) -> tuple[float, float]:
        """The decay rates of the first and the second moment."""
        return self.beta1, self.beta2

    def build(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        """torch's Adam over groups of `param_groups`."""
        from peakpoint.optimizers.adam import build_adam

        return build_adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, amsgrad=self.amsgrad)


@register("optimizer", "adamw")
@dataclass(kw_only=True)
class AdamW(Adam):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101); weight decay is applied to the weights."""

    def build(self, groups: list[dict[str, Any]]) -> "torch.optim.Optimizer":
        """torch's AdamW over groups of `param_groups`."""
        from peakpoint.optimizers.adamw import build_adamw

        return build_adamw(groups, lr=self.lr, betas=self.betas, eps=self.eps, amsgrad=self.amsgrad)


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
        """AdamW with SPAM over groups of `param_groups`."""
        from peakpoint.optimizers import adamwspam

        spam = adamwspam.SpamSettings(
            threshold=self.spike_threshold, interval=self.reset_interval, warmup=self.reset_warmup
        )
        return adamwspam.AdamWSPAM(
            groups, spam=spam, lr=self.lr, betas=self.betas, eps=self.eps, amsgrad=self.amsgrad
        )
