"""Clipping before each step: of the gradient's norm, and of spikes (SPAM)."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_KEY = "spam"
# Steps after a reset before spikes are clipped, as in the authors' code: v needs some gradients first.
_SETTLE = 20
_MOMENTS = ("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class GradientNorm:
    """The global norm of the gradients at a step that wants it, before they are clipped."""

    def __init__(self) -> None:
        self.wanted = False
        self._norm: Tensor | None = None

    def note(self, norm: Tensor) -> None:
        """Keep the norm of the current step, a scalar on the device, which is not waited for."""
        self._norm, self.wanted = norm, False

    def take(self) -> float | None:
        """Return the norm of the step that wanted it, None when it was skipped. Waits for the device."""
        norm, self._norm, self.wanted = self._norm, None, False
        return None if norm is None else float(norm)


def clip_gradients(optimizer: Optimizer, max_norm: float | None) -> GradientNorm:
    """Have every step of `optimizer` first scale its gradients to a global norm of at most `max_norm`.

    Returns the norm, which is measured at the steps that want it; with a `max_norm` of None that is all that
    is done. Hooks run in the order of their registration: call this after attaching a Pruner, so that the
    gradients of pruned weights do not count. (Pascanu et al. 2013, arXiv:1211.5063.)
    """
    found = GradientNorm()

    def clip(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        if max_norm is None and not found.wanted:
            return
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if max_norm is None:
            norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
        else:
            _require_unscaled(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(params, max_norm)
        if found.wanted:
            found.note(norm)

    optimizer.register_step_pre_hook(clip)
    return found


def _require_unscaled(optimizer: Optimizer) -> None:
    """Raise ValueError when a gradient scaler has left the gradients scaled."""
    if getattr(optimizer, "grad_scale", None) is not None:
        raise ValueError("Gradients are still scaled: call scaler.unscale_(optimizer) before its step.")


class Spam:
    """Spike-aware clipping and momentum reset (Huang et al. 2025, arXiv:2501.06842), attached to an AdamW.

    A gradient g is a spike where g^2 is above `threshold` * v. The moments are reset every `interval` steps
    (0: never), and the learning rate then warms up over `warmup` steps: a factor that lasts for one step,
    never part of group["lr"]. The counters are saved in the optimizer's state_dict under "spam"; settings are
    not, so the configuration wins.
    """

    def __init__(self, optimizer: Optimizer, threshold: float, interval: int, warmup: int) -> None:
        self._threshold, self._interval, self._warmup = threshold, interval, warmup
        self._taken = 0
        self._reset_at = 0
        self._rates: list[Any] = []
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        _require_unscaled(optimizer)
        if self._interval and self._taken - self._reset_at >= self._interval:
            _reset_moments(optimizer)
            self._reset_at = self._taken
        if self._taken - self._reset_at >= _SETTLE:
            _clip_spikes(optimizer, self._threshold)
        factor = self._warmup_factor()
        self._rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        if not _was_skipped(optimizer):
            self._taken += 1

    def _warmup_factor(self) -> float:
        """Return half a cosine up to 1 over the steps that follow a reset; 1 before the first reset."""
        done = self._taken - self._reset_at + 1
        if self._reset_at == 0 or done >= self._warmup:
            return 1.0
        return 0.5 * (1 - math.cos(math.pi * done / self._warmup))

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


def _was_skipped(optimizer: Optimizer) -> bool:
    """Return whether a gradient scaler had the fused kernel leave this step out.

    With a fused optimizer the scaler calls step() even then, and the kernel alone looks at `found_inf`;
    hooks run all the same. Without a scaler this costs no synchronisation.
    """
    found = getattr(optimizer, "found_inf", None)
    return found is not None and float(found) != 0


def _reset_moments(optimizer: Optimizer) -> None:
    tensors = [state[key] for state in optimizer.state.values() for key in _MOMENTS if key in state]
    if tensors:
        torch._foreach_zero_(tensors)


@torch.no_grad()
def _clip_spikes(optimizer: Optimizer, threshold: float) -> None:
    """Limit each gradient to sqrt(threshold * v) where v is above 0."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    known = [
        (p.grad, optimizer.state[p]["exp_avg_sq"])
        for p in params
        if p.grad is not None and optimizer.state.get(p)
    ]
    if not known:
        return
    gradients, moments = ([pair[which] for pair in known] for which in (0, 1))
    limits = torch._foreach_mul(moments, threshold)
    torch._foreach_sqrt_(limits)
    for limit, moment in zip(limits, moments, strict=True):
        limit.masked_fill_(moment == 0, torch.inf)
    torch._foreach_minimum_(gradients, limits)
    torch._foreach_neg_(limits)
    torch._foreach_maximum_(gradients, limits)
