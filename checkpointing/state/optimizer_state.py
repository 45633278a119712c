"""Saved states of optimizers and schedules loaded into objects; a state of another kind is refused.

State that the optimizer's settings need and the file lacks is begun anew or refused; state that the file has
and the settings do not need is named and dropped.
"""

import copy
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from peakpoint.base.errors import CheckpointError, restoring

BEGUN = {"max_exp_avg_sq": "exp_avg_sq", "momentum_buffer": None}
"""Sources of state that can begin during a training; None where the optimizer begins it itself."""
PLAIN = ("state", "param_groups")


def kind(optimizer: object) -> str:
    """Return the name of an optimizer's class, which is saved beside its state."""
    return type(optimizer).__name__


def check_kind(optimizer: object, saved: Mapping[str, Any], named: object = None) -> None:
    """Raise CheckpointError when a state is of another kind of optimizer.

    `named` is the kind that was saved, None in older files. Two classes are of another kind when each has
    settings that the other lacks: AdamW's state serves Adam and its subclasses. Nothing is changed.
    """
    if not isinstance(optimizer, Optimizer) or "param_groups" not in saved:
        return
    theirs, ours = saved["param_groups"], optimizer.param_groups
    names = set().union(*(group.keys() for group in theirs)) - {"params", "param_names", "initial_lr"}
    only_theirs = sorted(names - set().union(*(group.keys() for group in ours)))
    only_ours = sorted(optimizer.defaults.keys() - names)
    if only_theirs and only_ours:
        what = named or f"an optimizer with {', '.join(only_theirs)}"
        raise CheckpointError(
            f"The optimizer's state in this checkpoint is of {what}, and {kind(optimizer)} cannot continue "
            "with it: give the optimizer that was saved, or load the weights alone and start anew."
        )


def load(optimizer: Any, saved: Mapping[str, Any], *, keep_settings: bool) -> list[str]:
    """Load a state; returns sentences on what was begun anew and what was dropped.

    With `keep_settings` the learning rate, decay and all other settings stay those of the optimizer; without
    it they are those of the file, as in torch. Raises CheckpointError when the state does not fit.
    """
    changes = _beside(optimizer, saved)
    groups = getattr(optimizer, "param_groups", [])
    settings = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    try:
        optimizer.load_state_dict(dict(saved))
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"The optimizer's state does not fit: {str(error).rstrip('.')}.") from None
    kept = _kept(optimizer) if isinstance(optimizer, Optimizer) else []
    if keep_settings:
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values)
    return changes + (_reconcile(optimizer, kept) if isinstance(optimizer, Optimizer) else [])


def _kept(optimizer: Optimizer) -> list[set[str]]:
    """Return the names of the state that each group's saved settings keep of a parameter."""
    return [_needed(optimizer, group) or set() for group in optimizer.param_groups]


def _beside(optimizer: Any, saved: Mapping[str, Any]) -> list[str]:
    """Return sentences on entries beside the parameters' state, such as masks, of only one of the two."""
    living = optimizer.state_dict().keys() - {*PLAIN}
    begun, dropped = sorted(living - saved.keys()), sorted(saved.keys() - living - {*PLAIN})
    return [
        *(f"The checkpoint's optimizer has no {name!r}: it begins anew." for name in begun),
        *(f"The checkpoint's optimizer has {name!r}, which nothing takes now: dropped." for name in dropped),
    ]


def _reconcile(optimizer: Optimizer, kept: list[set[str]]) -> list[str]:
    """Begin state that the settings need and the parameters lack; drop state that they do not need."""
    begun: set[str] = set()
    dropped: set[str] = set()
    changes: list[tuple[dict[str, Any], set[str], set[str]]] = []
    for group, before in zip(optimizer.param_groups, kept, strict=True):
        needed = _needed(optimizer, group)
        if needed is None:
            continue
        if not any(optimizer.state.values()):
            begun |= needed - before
        for state in filter(None, map(optimizer.state.get, group["params"])):
            lacking, needless = needed - state.keys(), state.keys() - needed
            if unknown := sorted(lacking - BEGUN.keys()):
                raise CheckpointError(
                    f"{kind(optimizer)} needs {unknown[0]} with these settings, and the checkpoint has none: "
                    "keep the settings that it was saved with."
                )
            changes.append((state, lacking, needless))
            begun |= lacking
            dropped |= needless
    for state, lacking, needless in changes:
        for name in lacking:
            if (source := BEGUN[name]) is not None:
                state[name] = state[source].clone()
        for name in needless:
            del state[name]
    return _in_sentences(sorted(begun), sorted(dropped))


def _in_sentences(begun: list[str], dropped: list[str]) -> list[str]:
    found = []
    if begun:
        how = [f"{name} begins {f'as {source}' if (source := BEGUN.get(name)) else 'anew'}" for name in begun]
        found.append(f"The checkpoint lacks what the optimizer's settings need: {', '.join(how)}.")
    if dropped:
        found.append(
            f"The optimizer's settings do not need what the checkpoint has, dropped: {', '.join(dropped)}."
        )
    return found


def _needed(optimizer: Optimizer, group: Mapping[str, Any]) -> set[str] | None:
    """Return the names of the state that a step keeps of a parameter in this group; None when unknown.

    A copy of the optimizer without hooks takes a step on a single zero, so no table of optimizers is needed.
    """
    try:
        shadow, first = copy.copy(optimizer), group["params"][0]
        stand_in = torch.zeros_like(first.detach().flatten()[:1].view([1] * first.dim()))
        stand_in.grad = torch.zeros_like(stand_in)
        shadow.param_groups = [{**group, "params": [stand_in]}]
        shadow.state = type(optimizer.state)(dict)
        shadow.step()
        return set(shadow.state[stand_in])
    except Exception:  # an optimizer of somebody else's, which may need anything to take a step
        return None


def load_schedule(scheduler: Any, saved: Mapping[str, Any]) -> None:
    """Load a learning-rate schedule's state. Raises CheckpointError for one that no such schedule saved.

    torch accepts any attributes for a schedule, and fails at a later step.
    """
    with restoring("scheduler_state_dict"):
        own = scheduler.state_dict()
        for name, value in saved.items():
            if name in own and not _alike(own[name], value):
                raise TypeError(f"{name} is of type {type(value).__name__}, not {type(own[name]).__name__}")
            if name not in own and hasattr(scheduler, name):
                raise ValueError(f"{name} is nothing that it saves")
        scheduler.load_state_dict(dict(saved))


def _alike(own: Any, value: Any) -> bool:
    if own is None or value is None:
        return True
    for kind in (str, Real | Tensor, Mapping):
        if isinstance(own, kind):
            return isinstance(value, kind)
    if isinstance(own, list | tuple):
        return isinstance(value, list | tuple) and all(_alike(own[0], each) for each in value if own)
    return True
