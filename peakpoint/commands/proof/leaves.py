"""Two checkpoints compared leaf by leaf, to the last bit. Imports torch when it is called."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

IGNORED = ("timestamp",)
"""What differs between two saves of the same state."""
FIRST = ("epoch", "global_step", "progress", "rng_state", "scheduler_state_dict", "optimizer_state_dict")
"""Causes before their effects: a weight differs whatever it was that was not restored."""


def compare(a: Path, b: Path) -> tuple[int, tuple[str, str, str] | None]:
    """How many leaves were compared, and the first that differs: its path and the two values in short."""
    from peakpoint.checkpointing.state import serialize

    left, right = (dict(_leaves(_ordered(serialize.load(path)))) for path in (a, b))
    for count, path in enumerate(dict.fromkeys([*left, *right]), 1):
        if path not in left or path not in right:
            short = [_short(side[path]) if path in side else "missing" for side in (left, right)]
            return count, (path, short[0], short[1])
        if not _same(left[path], right[path]):
            return count, (path, *_shorts(left[path], right[path]))
    return len(left), None


def _ordered(state: dict[str, Any]) -> dict[str, Any]:
    keys = [*(k for k in FIRST if k in state), *(k for k in state if k not in (*FIRST, *IGNORED))]
    return {key: state[key] for key in keys}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from _leaves(child, f"{path}/{key}" if path else str(key))
    else:
        yield path, value


def _same(a: Any, b: Any) -> bool:
    """Equal to the last bit, strides included."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
            return False
        # As bytes: NaN equals itself, and 0.0 is not -0.0.
        return torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (a, b)))
    return type(a) is type(b) and repr(a) == repr(b)


def _shorts(a: Any, b: Any) -> tuple[str, str]:
    """Both values in words; of two tensors of a kind, the first element that differs."""
    import torch

    if (
        isinstance(a, torch.Tensor)
        and isinstance(b, torch.Tensor)
        and (a.dtype, a.shape) == (b.dtype, b.shape)
    ):
        pair = [t.contiguous().flatten() for t in (a, b)]
        size = a.element_size()
        unequal = (pair[0].view(torch.uint8) != pair[1].view(torch.uint8)).view(-1, size).any(1).nonzero()
        if len(unequal):
            where, share = int(unequal[0]), f"{len(unequal)} of {a.numel()} elements differ"
            first, second = (f"element {where} is {t[where].item()!r}" for t in pair)
            return f"{first}; {share}", second
        return f"strides {a.stride()}", f"strides {b.stride()}"
    return _short(a), _short(b)


def _short(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"a tensor of {value.dtype}, shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
