"""Loads weights that another program saved as the contents of a checkpoint; their bytes are not verified.

Never executes code: objects that are neither tensors nor plain values become empty stand-ins, and are left
out.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peakpoint.base.errors import CheckpointError, first_line
from peakpoint.checkpointing.state import archive, objects, serialize
from peakpoint.checkpointing.storage import foreign
from peakpoint.deployment.inference.weights import read_safetensors

log = logging.getLogger("peakpoint")

WEIGHTS = ("model_state_dict", "state_dict", "model", "model_state", "module", "net", "network", "weights")
OPTIMIZER = ("optimizer_state_dict", "optimizer", "optimizer_state", "optimizer_states")
SCHEDULER = ("scheduler_state_dict", "scheduler", "lr_scheduler", "lr_schedulers", "scheduler_state")
KNOWN = frozenset({*WEIGHTS, *OPTIMIZER, *SCHEDULER, "rng_state"})


class _StandIn:
    """A placeholder for an object of a class that is not loaded."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def are_at(path: Path) -> bool:
    """Return whether a path is a file without a manifest that holds weights of another program."""
    if not path.is_file() or path.resolve().with_suffix(".json").exists():
        return False
    kind = foreign.recognise(path)
    return kind is not None and kind.loads


def load(path: Path, model: nn.Module) -> dict[str, Any]:
    """Return the contents of such a file under the keys of a checkpoint, weights by the names of `model`.

    Warns that its bytes cannot be verified, and of what was left out. Raises CheckpointError.
    """
    saved: Mapping[str, Any] = _opened(path)
    weights: Mapping[str, Any] | None = _under(saved, WEIGHTS, _is_weights)
    if weights is None and _is_weights(saved):
        weights, saved = saved, {}
    if weights is None:
        keys = ", ".join(map(str, list(saved)[:8]))
        raise CheckpointError(
            f"{path} holds no weights under {', '.join(WEIGHTS[:3])} or another usual key; its keys: {keys}."
        )
    other = {key: value for key, value in saved.items() if key not in KNOWN}
    rest = {key: value for key, value in other.items() if _is_plain(value)}
    left = ", ".join(str(key) for key in other if key not in rest)
    also = f" Left out, as it is no plain value: {left}." if left else ""
    log.warning("%s has no manifest: it is loaded, and its bytes cannot be verified.%s", path, also)
    return {
        "metrics": {},
        **rest,
        "model_state_dict": _renamed(weights, objects.weights(model).keys()),
        "optimizer_state_dict": _under(saved, OPTIMIZER, _is_mapping),
        "scheduler_state_dict": _under(saved, SCHEDULER, _is_mapping),
    }


def _opened(path: Path) -> Mapping[str, Any]:
    if foreign.recognise(path) == foreign.SAFE:
        return read_safetensors(path)
    archive.check_archive(path, archive.limit(path))
    try:
        strange = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception as error:  # torch raises many types
        raise CheckpointError(f"{path} cannot be opened as a checkpoint: {first_line(error)}") from None
    with torch.serialization.safe_globals([(_StandIn, name) for name in strange]):
        return serialize.load(path)


def _under(
    saved: Mapping[str, Any], keys: Iterable[str], good: Callable[[Any], bool]
) -> dict[str, Any] | None:
    """Return the first good value of these keys, also from a list of one, as Lightning keeps it."""
    for key in keys:
        value: Any = saved.get(key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if good(value):
            return dict(value)
    return None


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and any(isinstance(each, Tensor) for each in value.values())
        and all(isinstance(key, str) for key in value)
        and not any(isinstance(each, Mapping | _StandIn) for each in value.values())
    )


def _is_plain(value: Any) -> bool:
    """Return whether a value holds no stand-in."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else not isinstance(value, _StandIn)


def _renamed(weights: Mapping[str, Any], wanted: Set[str]) -> dict[str, Any]:
    """Return the weights without the prefixes of other programs: `module.`, `_orig_mod.`, `model.`."""
    found = {objects.canonical(name): value for name, value in weights.items()}
    while not wanted & found.keys():
        first = {name.partition(".")[0] for name in found}
        if len(first) != 1 or not all("." in name for name in found):
            break
        found = {name.partition(".")[2]: value for name, value in found.items()}
    return found
