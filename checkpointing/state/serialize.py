"""State to bytes and back: tensors and plain types only, so that `weights_only=True` opens every file."""

import math
import pickle
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from peakpoint.base import given
from peakpoint.base.bounded import DEEPEST
from peakpoint.base.digests import BLAKE3, Hasher, hasher, named
from peakpoint.base.errors import CheckpointError, first_line, os_reason
from peakpoint.base.files import Staged
from peakpoint.checkpointing.state import packing
from peakpoint.checkpointing.state.archive import check_archive

FLOOR, RATIO = 2**30, 256
"""Unpacked, a file may fill this many bytes, or this many times its size."""
VALUE = 64
"""Bytes that a value takes in memory, at least."""

PLAIN = (str, int, float, bool, type(None), bytes)


def snapshot(state: Any) -> Any:
    """Copy a nested state to host memory in one pass; nothing in it is shared with the living state.

    Tensors keep their strides, and tensors that share memory in the state share it in the copy. Raises
    CheckpointError naming the key of anything that is neither a tensor nor of a plain type (str, int, float,
    bool, None, bytes, list, tuple, dict): a checkpoint must open without unpickling classes.
    """
    return copied(state, lambda tensor: tensor.to("cpu", copy=True))


def _path(where: tuple[Any, ...]) -> str:
    """The place of a value, from its container's and its own key: `state['a'][1]` for (((), "a"), 1)."""
    return f"{_path(where[0])}[{where[1]!r}]" if where else "state"


def copied(
    value: Any,
    copy: Callable[[Tensor], Tensor],
    where: tuple[Any, ...] = (),
    seen: dict[tuple[Any, ...], Tensor] | None = None,
) -> Any:
    """A nested state with `copy` of each tensor in its place, called once for those that are one memory.

    `where` and `seen` are of the values around this one. Raises CheckpointError as `snapshot` does.
    """
    seen = {} if seen is None else seen
    if isinstance(value, Tensor):
        value = value.detach()
        if type(value) is not Tensor or value.layout is not torch.strided or value.is_meta:
            raise CheckpointError(
                f"{_path(where)} is a {_name(value)}, not plain and dense: convert it first."
            )
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in seen or value.numel() == 0:
            seen[key] = copy(value)
        return seen[key]
    if isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections"):
        for key in value:
            if type(key) is not str and not _is_key(key):
                raise CheckpointError(f"{_path(where)} has a key of type {_name(key)}: use str or int keys.")
        return {k: copied(v, copy, (where, k), seen) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(v, copy, (where, i), seen) for i, v in enumerate(value))
    if type(value) in PLAIN:
        return value
    raise CheckpointError(
        f"{_path(where)} is of type {_name(value)}, which a checkpoint does not hold: "
        "convert it to tensors, numbers, strings, lists or dicts first."
    )


def _is_key(value: Any) -> bool:
    return type(value) in (str, int, float, bool) or (type(value) is tuple and all(map(_is_key, value)))


def _name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def digest(snapshot: Any) -> str:
    """The digest of a snapshot: the same only for the same keys, types, strides and values, bit for bit."""
    found = hasher(BLAKE3)
    _feed(found, snapshot)
    return named(found)


def _feed(found: Hasher, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}{value.stride()}".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        found.update(f"{len(value)} items".encode())
        for key, child in value.items():
            found.update(repr(key).encode())
            _feed(found, child)
    elif isinstance(value, list | tuple):
        found.update(f"{type(value).__name__} of {len(value)}".encode())
        for child in value:
            _feed(found, child)
    else:  # by repr: 0.0 is not -0.0, and NaN is NaN
        found.update(f"{type(value).__name__} {value!r}".encode())


def nonfinite(state: Mapping[str, Any]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity, or None."""
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):  # a module's extra state may be anything
            continue
        # The sum is finite only if every element is, short of an overflow, which the exact test settles.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            return name
    return None


def dump(state: Any, file: BinaryIO | Staged, *, compress: bool = False) -> None:
    """Write a snapshot as a `.pt` file, in one sequential pass; with `compress`, zeros packed away."""
    if compress:
        state = packing.pack(state)
    # The zip format's CRC is most of torch.save's CPU time, and the manifest's digest says more.
    with_crc = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, cast(BinaryIO, file))  # it only writes and flushes
    except RuntimeError as error:
        # When a write fails, torch ends its zip file all the same and complains of a wrong position.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        torch.serialization.set_crc32_options(with_crc)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {os_reason(error)}.") from None


def _check_bounds(state: Any, limit: int) -> None:
    """Raise ValueError for what a small file stands for and nobody could copy, or walk to its end.

    A tensor can be one number under any shape; a list can hold another many times, in each of many levels.
    """
    level, values, size = [state], 0, 0
    for _ in range(DEEPEST):
        children: list[Any] = []
        for value in level:
            if isinstance(value, Tensor):
                size += math.prod(value.shape) * value.element_size()
                if size > limit:
                    raise ValueError(f"its tensors would fill more than {limit} bytes")
                continue
            inner = value.values() if isinstance(value, Mapping) else value
            if isinstance(inner, Collection):
                values += len(inner)
                children += [each for each in inner if type(each) not in PLAIN]
            if values > limit // VALUE:
                raise ValueError(f"it would hold more than {limit // VALUE} values")
        level = children
    if level:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a `.pt` file onto a device, packed or not. Raises CheckpointError when it is not one.

    Never executes code from the file. Verify the digest first: torch.load does not notice flipped bits.
    """
    path = given.path(path)
    limit = max(FLOOR, RATIO * _size(path))
    check_archive(path, limit)
    try:
        # To the CPU first: packed tensors are unpacked there.
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # whose words are how to execute it all the same
        why = "it is damaged, or holds more than tensors and plain values"
        raise CheckpointError(f"{path} cannot be opened as a checkpoint: {why}.") from None
    except Exception as error:  # torch raises RuntimeError, EOFError, OSError and more
        first = first_line(error).rstrip(". ")
        raise CheckpointError(f"{path} cannot be opened as a checkpoint: {first}.") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {_name(state)} and not the dict of a checkpoint.")
    try:
        _check_bounds(state, limit)
    except ValueError as error:
        raise CheckpointError(f"{path} is refused: {error}.") from None
    unpacked: dict[str, Any] = packing.unpack(state, limit)
    return unpacked if torch.device(device).type == "cpu" else packing.apply(unpacked, lambda t: t.to(device))
