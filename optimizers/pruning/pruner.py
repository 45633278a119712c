"""Pruning attached to any optimizer: masks, the step counter and the schedule, through the optimizer's hooks.

A pruned weight is zero, its state is zero, and its gradient is masked before each step. Then no momentum and
no weight decay can move it, and the one pass over the gradients is all that a step costs.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from peakpoint.base import registry
from peakpoint.optimizers import catalogue  # noqa: F401 (registers)
from peakpoint.optimizers.pruning.criterion import Context, Criterion, ScoreError
from peakpoint.optimizers.pruning.lowest_k import lowest_where, sort_keys
from peakpoint.optimizers.pruning.masks import laid_out_like, pack, unpack, zero_unkept

_KEY = "pruning"


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSettings:
    """How to prune. Steps count those of the run from 1, also those that were skipped.

    `target` is the final sparsity, a fraction of all prunable weights. The ramp runs from `initial`, the
    sparsity of the network at `begin`, with an update every `frequency` steps from `start_step` to `end_step`
    and one at the end. The options are the settings of the three components. Raises ValueError for steps or
    a target that are no ramp upwards, for an unknown component, and for options that it does not have.
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
    criterion_options: Mapping[str, Any] = field(default_factory=dict)
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    allocation_options: Mapping[str, Any] = field(default_factory=dict)

    def made(self, kind: str) -> Any:
        """Return the `criterion`, the `schedule` or the `allocation` with its options."""
        return registry.make(kind, getattr(self, kind), getattr(self, f"{kind}_options"))

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
        """Return the sparsity that the schedule asks for after `step` steps."""
        if step >= self.end_step:
            return self.target
        if step <= self.start_step:
            return self.initial
        progress = (step - self.start_step) / (self.end_step - self.start_step)
        fraction: float = self.made("schedule")(progress)
        return self.initial + (self.target - self.initial) * fraction

    def due(self, step: int, sparsity: float) -> bool:
        """Return whether to update after `step` steps, with `sparsity` reached so far.

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
    kept. Groups added later are not pruned. `seed` is for criteria that draw numbers. Raises ValueError when
    there is nothing to prune; the first step raises ScoreError when the optimizer does not keep what the
    criterion needs, and an update does when the scores are not floats of the weight's shape without NaN.
    """

    def __init__(self, optimizer: Optimizer, settings: PruneSettings, seed: int = 0) -> None:
        groups = [group for group in optimizer.param_groups if group.get("prunable")]
        self.params: list[Tensor] = [param for group in groups for param in group["params"]]
        if not self.params:
            raise ValueError("There is nothing to prune: no parameter group carries prunable=True.")
        self._names = [name for group in groups for name in _names(group)]
        if any(group.get("eps") == 0 for group in optimizer.param_groups):
            raise ValueError("Pruning needs eps above 0: the update of a pruned weight is 0 / (0 + eps).")
        self._criterion: Criterion = settings.made("criterion")
        self._allocate = settings.made("allocation")
        self._seed = seed
        self._has_state = not self._criterion.needs
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
        if not self._has_state:
            self._require_state(optimizer)
        self.advance()

    def _require_state(self, optimizer: Optimizer) -> None:
        """Raise ScoreError unless the optimizer keeps what the criterion needs for each weight it moves."""
        for name, param in zip(self._names, self.params, strict=True):
            kept = optimizer.state.get(param, {})
            lacking = [need for need in self._criterion.needs if not isinstance(kept.get(need), Tensor)]
            if lacking and param.grad is not None:
                raise ScoreError(
                    f"The criterion {self.settings.criterion} scores weights by {' and '.join(lacking)}, "
                    f"which {type(optimizer).__name__} does not keep for {name}: use pruning=magnitude or "
                    "another optimizer."
                )
        self._has_state = any(param.grad is not None for param in self.params)

    @torch.no_grad()
    def _prune(self, sparsity: float) -> None:
        """Raise the sparsity to exactly ceil(sparsity * weights) zeros; never lower it."""
        if sparsity <= self.sparsity or not self._scorable():
            return
        self.sparsity = sparsity
        k = math.ceil(sparsity * self._total - 1e-9)
        if k <= self._pruned:
            return
        chosen = self._allocate(self._keys(), k)
        self.masks = [
            laid_out_like(param, kept.logical_not_().view(param.shape))
            for param, kept in zip(self.params, chosen, strict=True)
        ]
        self._pruned = k
        self.mask_version += 1
        self._zero_weights()

    def _scorable(self) -> bool:
        """Return whether a weight has the state that the criterion needs: before the first step none has."""
        needs, state = self._criterion.needs, self._optimizer.state
        return not needs or any(state.get(param) for param in self.params)

    def _keys(self) -> list[Tensor]:
        """Return the sort keys of every weight's score, those of pruned weights below all others.

        Raises ScoreError for scores that do not sort.
        """
        keys, undefined = [], []
        for index, (name, param) in enumerate(zip(self._names, self.params, strict=True)):
            state = self._optimizer.state.get(param) or {
                need: torch.zeros_like(param) for need in self._criterion.needs
            }
            score = self._criterion.score(
                Context(name=name, weight=param, state=state, step=self.step, seed=self._seed)
            )
            self._check_score(name, param, score)
            missing = score.isnan()
            key = sort_keys(score)
            if self.masks:
                missing &= self.masks[index]  # a pruned weight has no score to sort by
                lowest_where(key, self.masks[index].contiguous().view(-1))
            undefined.append(missing.sum())
            keys.append(key)
        for name, count in zip(self._names, torch.stack(undefined).tolist(), strict=True):
            if count:
                raise ScoreError(
                    f"The criterion {self.settings.criterion} scores {count} weights of {name} as NaN: the "
                    "network has diverged, or the criterion divides by zero."
                )
        return keys

    def _check_score(self, name: str, param: Tensor, score: Any) -> None:
        """Raise ScoreError unless a score is a tensor of floats of the weight's shape."""
        if isinstance(score, Tensor) and score.is_floating_point() and score.shape == param.shape:
            return
        found = f"a {type(score).__name__}"
        if isinstance(score, Tensor):
            found = f"{str(score.dtype).removeprefix('torch.')} of shape {tuple(score.shape)}"
        raise ScoreError(
            f"The criterion {self.settings.criterion} scores {name} by {found}: it must be a tensor of "
            f"floats of the weight's shape, {tuple(param.shape)}."
        )

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


def _names(group: dict[str, Any]) -> list[str]:
    """Return the names of a group's parameters, or their places where it has none."""
    return group.get("param_names") or [f"parameter {place}" for place in range(len(group["params"]))]


def _require(state: dict[str, Any], key: str) -> Any:
    if key not in state:
        raise ValueError(f"There is no {key!r} in the pruning state: it is damaged.")
    return state[key]
