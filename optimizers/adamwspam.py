"""AdamWSPAM: AdamW with spike-aware clipping and momentum reset (Huang et al. 2025, arXiv:2501.06842)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from peakpoint.optimizers.kernels import fused_for, keep_strides, require_unscaled, step_was_skipped

_KEY = "spam"
# Steps after a reset before spikes are clipped, as in the authors' code: v needs some gradients first.
_SETTLE = 20
_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpamSettings:
    """When a gradient is a spike, and how often the moments start afresh.

    A gradient g is a spike where g^2 is above `threshold` * v. The moments are reset every `interval` steps
    (0: never), and the learning rate then warms up over `warmup` steps.
    """

    threshold: float
    interval: int
    warmup: int

    def __post_init__(self) -> None:
        if self.threshold <= 0 or self.interval < 0 or self.warmup < 0:
            raise ValueError(
                f"SPAM needs a threshold above 0 and an interval and warm-up of at least 0, not {self}."
            )


class AdamWSPAM(torch.optim.AdamW):
    """AdamW over groups from `param_groups`, with SPAM before each step.

    It works through hooks and leaves torch's step alone: a step() of our own that called the parent's would
    run every hook twice. The warm-up is a factor that lasts for one step, never part of group["lr"]. The
    counters are saved in the state_dict under "spam"; settings are not, so the configuration wins.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        spam: SpamSettings,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        amsgrad: bool,
    ) -> None:
        fused = fused_for(groups)
        super().__init__(groups, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad, fused=fused, foreach=not fused)
        keep_strides(self)
        self.spam = spam
        self._taken = 0
        self._reset_at = 0
        self._rates: list[Any] = []
        self.register_step_pre_hook(self._before)
        self.register_step_post_hook(self._after)
        self.register_state_dict_post_hook(self._save)
        self.register_load_state_dict_pre_hook(self._load)

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        require_unscaled(self)
        if self.spam.interval and self._taken - self._reset_at >= self.spam.interval:
            self._reset_moments()
            self._reset_at = self._taken
        if self._taken - self._reset_at >= _SETTLE:
            self._clip_spikes()
        factor = self._warmup_factor()
        self._rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * factor

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        for group, rate in zip(self.param_groups, self._rates, strict=True):
            group["lr"] = rate
        if not step_was_skipped(self):
            self._taken += 1

    def _warmup_factor(self) -> float:
        """Half a cosine up to 1 over the steps that follow a reset; 1 before the first reset."""
        done = self._taken - self._reset_at + 1
        if self._reset_at == 0 or done >= self.spam.warmup:
            return 1.0
        return 0.5 * (1 - math.cos(math.pi * done / self.spam.warmup))

    def _reset_moments(self) -> None:
        tensors = [state[key] for state in self.state.values() for key in _MOMENTS if key in state]
        if tensors:
            torch._foreach_zero_(tensors)

    @torch.no_grad()
    def _clip_spikes(self) -> None:
        """Limit each gradient to sqrt(threshold * v) where v is above 0."""
        known = [
            p for g in self.param_groups for p in g["params"] if p.grad is not None and self.state.get(p)
        ]
        if not known:
            return
        moments = [self.state[p]["exp_avg_sq"] for p in known]
        limits = torch._foreach_mul(moments, self.spam.threshold)
        torch._foreach_sqrt_(limits)
        for limit, moment in zip(limits, moments, strict=True):
            limit.masked_fill_(moment == 0, torch.inf)
        gradients = [p.grad for p in known if p.grad is not None]
        torch._foreach_minimum_(gradients, limits)
        torch._foreach_neg_(limits)
        torch._foreach_maximum_(gradients, limits)

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:  # noqa: ARG002
        state_dict[_KEY] = {"step": self._taken, "reset_at": self._reset_at}

    def _load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        if _KEY not in state_dict:  # saved by an optimizer without SPAM: its moments are kept
            self._taken = self._reset_at = 0
            return state_dict
        for key in ("step", "reset_at"):
            if key not in state_dict[_KEY]:
                raise ValueError(f"There is no {key!r} in the state of AdamWSPAM: it is damaged.")
        self._taken = state_dict[_KEY]["step"]
        self._reset_at = state_dict[_KEY]["reset_at"]
        return {key: value for key, value in state_dict.items() if key != _KEY}
