"""Pruning attached to any optimizer: masks, the step counter and the schedule, through the optimizer's hooks.

A pruned weight is zero, its state is zero, and its gradient is masked before each step. Then no momentum and
no weight decay can move it, and the one pass over the gradients is all that a step costs.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from peakpoint.base import registry
from peakpoint.optimizers import catalogue  # noqa: F401 (registers)
from peakpoint.optimizers.pruning.criterion import Context, Criterion
from peakpoint.optimizers.pruning.lowest_k import lowest_where, sort_keys

_KEY = "pruning"
_BITS_OF = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSettings:
    """How to prune. Steps count those of the run from 1, also those that were skipped.

    `target` is the final sparsity, a fraction of all prunable weights. The ramp runs from `initial`, the
    sparsity of the network at `begin`, with an update every `frequency` steps from `start_step` to `end_step`
    and one at the end. Raises ValueError for steps or a target that are no ramp upwards.
    """

    criterion: str
    target: float
    start_step: int
    end_step: int
    frequency: int
    schedule: str
    allocation: str
    begin: int = 0
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.target:
            raise ValueError(
                f"The pruning target {self.target:g} is below the sparsity of the network, {self.initial:g}: "
                "pruned weights stay pruned."
            )
        if not 0 <= self.begin <= self.start_step <= self.end_step:
            raise ValueError(
                f"Pruning from step {self.start_step} to step {self.end_step} is not a ramp: "
                f"the start must be at least {self.begin} and at most the end."
            )

    def sparsity_at(self, step: int) -> float:
        """The sparsity that the schedule asks for after `step` steps."""
        if step >= self.end_step:
            return self.target
        if step <= self.start_step:
            return self.initial
        progress = (step - self.start_step) / (self.end_step - self.start_step)
        fraction: float = registry.find("schedule", self.schedule)(progress)
        return self.initial + (self.target - self.initial) * fraction

    def due(self, step: int, sparsity: float) -> bool:
        """Whether to update after `step` steps, with `sparsity` reached so far.

        Past the end an update is due only to catch up, as after a resume with a shorter ramp.
        """
        if step > self.end_step:
            return sparsity < self.target
        on_beat = (step - self.start_step) % self.frequency == 0
        return step >= self.start_step and (on_beat or step == self.end_step)


class Pruner:
    """Prunes the weights in the groups of `optimizer` that carry `prunable=True`, from now on.

    `step` counts the steps of the run, those that were skipped included, so that the ramp ends when the run
    does. `sparsity` is the target that has been applied, `mask_version` grows by one whenever the masks
    change. `params` are the prunable weights, `masks` one bool tensor for each, True where the weight is
    kept; empty before the first pruning. A pruned weight stays pruned.

    All of it is saved in the optimizer's state_dict under "pruning". On load the counters and masks come from
    the state, and the settings stay those given here; a state saved without pruning begins with every weight
    kept. Groups added later are not pruned. Raises ValueError when there is nothing to prune, or when the
    criterion needs moments that the optimizer lacks.
    """

    def __init__(self, optimizer: Optimizer, settings: PruneSettings) -> None:
        groups = [group for group in optimizer.param_groups if group.get("prunable")]
        self.params: list[Tensor] = [param for group in groups for param in group["params"]]
        if not self.params:
            raise ValueError("There is nothing to prune: no parameter group carries prunable=True.")
        self._names = [name for group in groups for name in _names(group)]
        self._criterion: Criterion = registry.find("criterion", settings.criterion)()
        _check_optimizer(optimizer, settings.criterion, self._criterion.needs)
        self.settings = settings
        self.step = 0
        self.sparsity = 0.0
        self.mask_version = 0
        self.masks: list[Tensor] = []
        self._pruned = 0
        self._total = sum(param.numel() for param in self.params)
        self._optimizer = optimizer
        optimizer.register_step_pre_hook(self._mask_gradients)
        optimizer.register_step_post_hook(self._count_step)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)

    def advance(self) -> None:
        """Count a step of the run, and prune when an update is due.

        The optimizer's `step` does so. Call it for a step that was left out, as one with a loss that is not
        finite, or one that a gradient scaler left out when the optimizer is not fused.
        """
        self.step += 1
        if self.settings.due(self.step, self.sparsity):
            self._prune(self.settings.sparsity_at(self.step))

    def _mask_gradients(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if any(arg is not None for arg in (*args[1:], *kwargs.values())):
            raise ValueError("Pruning needs gradients before the step: call step() without a closure.")
        pairs = [
            (p.grad, mask) for p, mask in zip(self.params, self.masks, strict=False) if p.grad is not None
        ]
        zero_unkept(pairs)

    def _count_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        self.advance()

    @torch.no_grad()
    def _prune(self, sparsity: float) -> None:
        """Raise the sparsity to exactly ceil(sparsity * weights) zeros; never lower it."""
        if sparsity <= self.sparsity:
            return
        self.sparsity = sparsity
        k = math.ceil(sparsity * self._total - 1e-9)
        if k <= self._pruned:
            return
        chosen = registry.find("allocation", self.settings.allocation)(self._keys(), k)
        self.masks = [
            _like(param, kept.logical_not_().view(param.shape))
            for param, kept in zip(self.params, chosen, strict=True)
        ]
        self._pruned = k
        self.mask_version += 1
        self._zero_weights()

    def _keys(self) -> list[Tensor]:
        """The sort keys of every weight's score, those of pruned weights below all others."""
        keys = []
        for index, (name, param) in enumerate(zip(self._names, self.params, strict=True)):
            context = Context(name, param, self._optimizer.state.get(param, {}))
            score = self._criterion.score(context)
            if score.shape != context.shape:
                raise ValueError(
                    f"The criterion {self.settings.criterion} scores {name} by a tensor of shape "
                    f"{tuple(score.shape)}: it must be that of the weight, {tuple(context.shape)}."
                )
            key = sort_keys(score)
            if self.masks:
                lowest_where(key, self.masks[index].contiguous().view(-1))
            keys.append(key)
        return keys

    def _zero_weights(self) -> None:
        """Zero the pruned weights and everything of their shape in the optimizer's state."""
        pairs = []
        for param, mask in zip(self.params, self.masks, strict=True):
            values = [v for v in self._optimizer.state.get(param, {}).values() if isinstance(v, Tensor)]
            pairs += [(value, mask) for value in (param.detach(), *values) if value.shape == param.shape]
        zero_unkept(pairs)

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:  # noqa: ARG002
        state_dict[_KEY] = {
            "step": self.step,
            "sparsity": self.sparsity,
            "mask_version": self.mask_version,
            "settings": asdict(self.settings),
            "masks": [pack(mask) for mask in self.masks],
        }

    def _load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        if _KEY not in state_dict:  # of a dense training, which is pruned from now on
            self.step, self.sparsity, self.mask_version, self.masks, self._pruned = 0, 0.0, 0, [], 0
            return state_dict
        state = state_dict[_KEY]
        packed = _require(state, "masks")
        if len(packed) not in (0, len(self.params)):
            raise ValueError(
                f"The pruning state has {len(packed)} masks, and the model has {len(self.params)} prunable "
                "weights: it belongs to another model."
            )
        masks = [unpack(bits, param) for bits, param in zip(packed, self.params, strict=False)]
        self.step = _require(state, "step")
        self.sparsity = _require(state, "sparsity")
        self.mask_version = _require(state, "mask_version")
        self.masks = masks
        self._pruned = sum(mask.numel() - int(mask.sum()) for mask in masks)
        return {key: value for key, value in state_dict.items() if key != _KEY}


def pack(mask: Tensor) -> Tensor:
    """A bool mask as one bit a weight: 1-D uint8 on the CPU, in logical order, zero bits at the end."""
    return torch.from_numpy(np.packbits(mask.contiguous().view(-1).cpu().numpy()))


def unpack(bits: Tensor, like: Tensor) -> Tensor:
    """The mask that `pack` packed, with the shape, device and strides of `like`.

    Raises ValueError when the number of bytes is not that of a mask of this shape.
    """
    size = like.numel()
    if bits.dtype != torch.uint8 or bits.numel() != (size + 7) // 8:
        raise ValueError(
            f"A pruning mask of {bits.numel()} bytes ({bits.dtype}) does not fit a weight of shape "
            f"{tuple(like.shape)}: it belongs to another model."
        )
    flat = torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=size).view(np.bool_))
    return _like(like, flat.view(like.shape))


def _like(param: Tensor, mask: Tensor) -> Tensor:
    """The mask with the device and strides of the parameter: elementwise work on both is then one sweep."""
    return torch.empty_like(param, dtype=torch.bool, requires_grad=False).copy_(mask)


def zero_unkept(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Set each tensor to +0.0 where its mask is False, whatever was there (also NaN and infinity).

    The bits are multiplied as integers: NaN * 0 is NaN and -1.0 * 0 is -0.0, which compresses badly, while
    masked_fill_ is 5 to 10 times slower on the CPU (benchmarks/pruning_cost.py).
    """
    if pairs:
        bits = [tensor.view(_BITS_OF[tensor.element_size()]) for tensor, _ in pairs]
        torch._foreach_mul_(bits, [mask for _, mask in pairs])


def _names(group: dict[str, Any]) -> list[str]:
    """The names of a group's parameters, or their places where it has none."""
    return group.get("param_names") or [f"parameter {place}" for place in range(len(group["params"]))]


def _check_optimizer(optimizer: Optimizer, criterion: str, needs: tuple[str, ...]) -> None:
    if {"exp_avg", "exp_avg_sq"} & {*needs} and "betas" not in optimizer.defaults:
        name = type(optimizer).__name__.lower()
        raise ValueError(
            f"pruning=state ({criterion}) needs an optimizer of the Adam family (adam, adamw, "
            f"adamwspam, adamwprune), and {name} has no moments; use pruning=magnitude with {name}."
        )
    if any(group.get("eps") == 0 for group in optimizer.param_groups):
        raise ValueError("Pruning needs eps above 0: the update of a pruned weight is 0 / (0 + eps).")


def _require(state: dict[str, Any], key: str) -> Any:
    if key not in state:
        raise ValueError(f"There is no {key!r} in the pruning state: it is damaged.")
    return state[key]
