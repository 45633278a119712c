"""Pruning attached to any optimizer: masks, the step counter and the schedule, through the optimizer's hooks.

A pruned weight is zero, its state is zero, and its gradient is masked before each step. Then no momentum and
no weight decay can move it, and the one pass over the gradients is all that a step costs.
"""

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from peakpoint.optimizers.pruning.allocation import Budget
from peakpoint.optimizers.pruning.criterion import Accumulating, Context, Criterion, ScoreError
from peakpoint.optimizers.pruning.lowest_k import HIGHEST, lowest_where, sort_keys
from peakpoint.optimizers.pruning.masks import laid_out_like, pack, unpack, zero_unkept
from peakpoint.optimizers.pruning.pattern import parsed
from peakpoint.optimizers.pruning.regrow import by_chance, exchange
from peakpoint.optimizers.pruning.settings import PruneSettings

_KEY = "pruning"


class Pruner:
    """Prunes the weights in the groups of `optimizer` that carry `prunable=True`, from now on.

    `step` counts the steps of the run, those that were skipped included, so that the ramp ends when the run
    does. `sparsity` is the target that has been applied, `mask_version` grows by one whenever the masks
    change. `params` are the prunable weights, `masks` one bool tensor for each, True where the weight is
    kept; empty before the first pruning. A pruned weight stays pruned, unless the settings let it regrow.

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
        self._pattern = parsed(settings.pattern) if settings.pattern else None
        self._seed = seed
        self._has_state = not self._criterion.needs
        self.settings = settings
        self.step = 0
        self.sparsity = 0.0
        self.mask_version = 0
        self.masks: list[Tensor] = []
        self._sums = self._new_sums()
        self._dense: list[Tensor] = []
        self._total = sum(param.numel() for param in self.params)
        self._floors = [math.ceil(settings.min_density * param.numel() - 1e-9) for param in self.params]
        if self._total - sum(self._floors) < self._zeros_at(settings.target):
            raise ValueError(
                f"pruning.min_density={settings.min_density:g} leaves at most "
                f"{1 - sum(self._floors) / self._total:g} to prune, and the target is {settings.target:g}."
            )
        self._optimizer = optimizer
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._count_step)
        optimizer.register_state_dict_post_hook(self._save)
        optimizer.register_load_state_dict_pre_hook(self._load)

    def _zeros_at(self, sparsity: float) -> int:
        """Return the number of zeros: exactly ceil(sparsity * weights)."""
        return math.ceil(sparsity * self._total - 1e-9)

    def _new_sums(self) -> list[Tensor]:
        if not isinstance(self._criterion, Accumulating):
            return []
        return [torch.zeros_like(param, dtype=torch.float32, requires_grad=False) for param in self.params]

    def advance(self) -> None:
        """Count a step of the run, and prune when an update is due.

        The optimizer's `step` does so. Call it for a step that was left out, as one with a loss that is not
        finite, or one that a gradient scaler left out when the optimizer is not fused.
        """
        self.step += 1
        if self.settings.due(self.step, self.sparsity):
            self._update()
        self._dense = []

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        if any(arg is not None for arg in (*args[1:], *kwargs.values())):
            raise ValueError("Pruning needs gradients before the step: call step() without a closure.")
        coming, settings = self.step + 1, self.settings
        exchanges = settings.exchanged_at(coming) > 0 and settings.due(coming, self.sparsity)
        if exchanges and settings.regrow == "gradient":
            self._dense = [_magnitudes(param) for param in self.params]
        pairs = [
            (p.grad, mask) for p, mask in zip(self.params, self.masks, strict=False) if p.grad is not None
        ]
        zero_unkept(pairs)
        if isinstance(self._criterion, Accumulating):
            self._accumulate(self._criterion)

    @torch.no_grad()
    def _accumulate(self, criterion: Accumulating) -> None:
        moved = [index for index, param in enumerate(self.params) if param.grad is not None]
        weights = [self.params[index].detach() for index in moved]
        gradients = [self.params[index].grad for index in moved]
        criterion.accumulate([self._sums[index] for index in moved], weights, gradients)  # type: ignore[arg-type]

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
    def _update(self) -> None:
        """Raise the sparsity to what the schedule asks for, never lower it, and exchange weights."""
        sparsity = max(self.sparsity, self.settings.sparsity_at(self.step))
        fraction = self.settings.exchanged_at(self.step) if self._can_regrow() else 0.0
        if (sparsity == self.sparsity and not fraction) or not self._scorable():
            return
        self.sparsity = sparsity
        pruned = self._counts()
        k = self._zeros_at(sparsity)
        if k <= sum(pruned) and not fraction:
            return
        chosen = self._chosen(max(k, sum(pruned)), pruned, fraction)
        masks = [
            laid_out_like(param, gone.logical_not_().view(param.shape))
            for param, gone in zip(self.params, chosen, strict=True)
        ]
        if fraction and self.masks and all(map(torch.equal, masks, self.masks)):
            return
        self.masks = masks
        self.mask_version += 1
        self._zero_weights()

    def _counts(self) -> list[int]:
        """Return how many weights of each tensor are pruned; waits for the device once."""
        if not self.masks:
            return [0] * len(self.params)
        kept = torch.stack([mask.sum() for mask in self.masks]).tolist()
        return [param.numel() - count for param, count in zip(self.params, kept, strict=True)]

    def _can_regrow(self) -> bool:
        """Return whether it is known what to regrow: a step that was left out has no gradients."""
        return self.settings.regrow == "random" or bool(self._dense)

    def _chosen(self, k: int, pruned: list[int], fraction: float) -> list[Tensor]:
        """Return what is pruned from now on, k weights in all, as 1-D bool for each tensor."""
        keys = self._keys()
        room = [param.numel() - floor for param, floor in zip(self.params, self._floors, strict=True)]
        if self._pattern:
            room = [self._keep_pattern(index, key) for index, key in enumerate(keys)]
        shapes = [tuple(param.shape) for param in self.params]
        most = [*map(max, room, pruned)]
        chosen = self._allocate(keys, Budget(min(k, sum(most)), shapes, pruned, most))
        if not fraction:
            return chosen
        return [
            exchange(key, int(gone.sum()), fraction, self._growth(index))
            for index, (key, gone) in enumerate(zip(keys, chosen, strict=True))
        ]

    def _keep_pattern(self, index: int, keys: Tensor) -> int:
        """Let what the pattern keeps of a tensor be taken last; returns how many weights remain to prune."""
        assert self._pattern is not None
        prunable = self._pattern.prunable(keys.view(self.params[index].shape)).reshape(-1)
        if self.masks:
            prunable |= self.masks[index].logical_not().contiguous().view(-1)
        keys.masked_fill_(~prunable, HIGHEST)
        return int(prunable.sum())

    def _growth(self, index: int) -> Tensor:
        if self.settings.regrow == "random":
            return by_chance(self._names[index], self.params[index], self._seed, self.step)
        return self._dense[index]

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
                Context(
                    name=name,
                    weight=param,
                    state=state,
                    step=self.step,
                    seed=self._seed,
                    accumulated=self._sums[index] if self._sums else None,
                )
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
        zero_unkept(pairs + list(zip(self._sums, self.masks, strict=False)))

    def _save(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:  # noqa: ARG002
        state_dict[_KEY] = {
            "step": self.step,
            "sparsity": self.sparsity,
            "mask_version": self.mask_version,
            "settings": asdict(self.settings),
            "masks": [pack(mask) for mask in self.masks],
            **({"sums": self._sums} if self._sums else {}),
        }

    def _load(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        if _KEY not in state_dict:  # of a dense training, which is pruned from now on
            self.step, self.sparsity, self.mask_version, self.masks = 0, 0.0, 0, []
            self._sums = self._new_sums()
            return state_dict
        state = state_dict[_KEY]
        packed = _require(state, "masks")
        if len(packed) not in (0, len(self.params)):
            raise ValueError(
                f"The pruning state has {len(packed)} masks, and the model has {len(self.params)} prunable "
                "weights: it belongs to another model."
            )
        masks = [unpack(bits, param) for bits, param in zip(packed, self.params, strict=False)]
        sums = self._new_sums()
        if sums and len(saved := state.get("sums", [])) == len(sums):  # none after another criterion
            for mine, other in zip(sums, saved, strict=True):
                mine.copy_(other)
        self.step = _require(state, "step")
        self.sparsity = _require(state, "sparsity")
        self.mask_version = _require(state, "mask_version")
        self.masks, self._sums = masks, sums
        return {key: value for key, value in state_dict.items() if key != _KEY}


def _names(group: dict[str, Any]) -> list[str]:
    """Return the names of a group's parameters, or their places where it has none."""
    return group.get("param_names") or [f"parameter {place}" for place in range(len(group["params"]))]


def _magnitudes(param: Tensor) -> Tensor:
    """Return abs(gradient) of a parameter, 1-D in logical order, of the weights that are pruned too."""
    gradient = torch.zeros_like(param) if param.grad is None else param.grad.detach()
    return gradient.abs().contiguous().view(-1)


def _require(state: dict[str, Any], key: str) -> Any:
    if key not in state:
        raise ValueError(f"There is no {key!r} in the pruning state: it is damaged.")
    return state[key]
