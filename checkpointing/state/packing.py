"""An exact sparse form for tensors with many zeros, inside an ordinary `.pt` of plain types.

Each tensor takes the smallest of three forms: dense, as it is; `bitmask`, one bit an element and the values
that are not zero; `index`, the positions and the values. Zero means all bits zero, so -0.0 and NaN payloads
come back bit for bit. A mask is stored once however many tensors share it: the moments of a pruned weight,
and the optimizer's own packed mask, usually have the zeros of the weight. What was one tensor stays one.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peakpoint.base.errors import CheckpointError

MARK = "__sparse__"
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_OVERHEAD = 512  # bytes that another entry costs in the zip file
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def pack(state: Any) -> Any:
    """Return the state with each tensor on the CPU in its smallest form, and all else unchanged."""
    masks: dict[int, list[_Mask]] = {}
    for tensor in _tensors(state):
        if _may_be_mask(tensor):
            masks.setdefault(tensor.numel(), []).append(_Mask(tensor))
    done: dict[int, Any] = {}

    def once(tensor: Tensor) -> Any:
        if id(tensor) not in done:
            done[id(tensor)] = tensor if _may_be_mask(tensor) else _smallest(tensor, masks)
        return done[id(tensor)]

    return apply(state, once)


def unpack(state: Any, limit: int) -> Any:
    """Return the state as it was before `pack`.

    Raises CheckpointError for a damaged sparse form, and before more than `limit` bytes are filled: a few
    bytes can stand for any number of zeros.
    """
    left = limit
    done: dict[int, Tensor] = {}

    def walk(value: Any) -> Any:
        nonlocal left
        if isinstance(value, dict):
            if MARK not in value:
                return {key: walk(child) for key, child in value.items()}
            if id(value) not in done:
                left -= _claimed_bytes(value)
                if left < 0:
                    raise CheckpointError(f"The sparse tensors would fill more than {limit} bytes: refused.")
                done[id(value)] = _restore(value)
            return done[id(value)]
        if isinstance(value, list | tuple):
            return type(value)(walk(child) for child in value)
        return value

    return walk(state)


def _claimed_bytes(form: dict[str, Any]) -> int:
    try:
        dtype: torch.dtype = getattr(torch, form["dtype"])
        shape, stride = torch.Size(form["shape"]), form["stride"]
        count = math.prod(shape)  # torch's own product may overflow
        # Strides may leave gaps as large as they like; the tensors that are packed have none.
        last = sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if count else 0
        if min(shape, default=0) < 0 or min(stride, default=0) < 0 or last >= max(count, 1):
            raise ValueError(f"its shape is {list(shape)} and its strides are {stride}")
        return count * dtype.itemsize
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _damaged(error) from None


def _damaged(error: Exception) -> CheckpointError:
    return CheckpointError(f"A sparse tensor cannot be unpacked, its form is damaged: {error}.")


def _may_be_mask(tensor: Tensor) -> bool:
    """Return whether a tensor may be a packed mask: it stays as it is, so that others can share it."""
    return tensor.dtype is torch.uint8 and tensor.dim() == 1 and tensor.numel() > 0


class _Mask:
    """A packed mask that is already stored for some tensor of the state."""

    def __init__(self, bits: Tensor) -> None:
        self.bits = bits
        self.array = bits.numpy()
        self.ones = int(_ONES[self.array].sum(dtype=np.int64))

    def covers(self, bits: np.ndarray) -> bool:
        """Return whether every 1 in `bits` is a 1 in this mask."""
        return not np.any(bits & ~self.array)


def _smallest(tensor: Tensor, masks: dict[int, list[_Mask]]) -> Any:
    size = tensor.element_size()
    if size not in _INTEGER or tensor.device.type != "cpu" or tensor.nbytes <= 2 * _OVERHEAD:
        return tensor
    flat = tensor.contiguous().view(-1)
    # numpy's comparison and positions, then torch's gather: boolean indexing is ten times slower.
    nonzero = flat.view(_INTEGER[size]).numpy() != 0
    bits = np.packbits(nonzero)
    count, known = int(np.count_nonzero(nonzero)), masks.setdefault(bits.size, [])
    shared = min((m for m in known if m.covers(bits)), key=lambda m: m.ones, default=None)
    position = _position(flat.numel())
    costs = {
        "dense": tensor.nbytes,
        "index": count * (size + position().itemsize) + 2 * _OVERHEAD,
        "bitmask": bits.size + count * size + 2 * _OVERHEAD,
        "shared": shared.ones * size + _OVERHEAD if shared else tensor.nbytes,
    }
    form = min(costs, key=lambda name: costs[name])
    if form == "dense":
        return tensor
    parts: dict[str, Any]
    if form == "index":
        positions = np.flatnonzero(nonzero).astype(position)
        parts = {"form": "index", "index": torch.from_numpy(positions.view(np.uint8))}
    else:
        if form == "bitmask" or shared is None:
            shared = _Mask(torch.from_numpy(bits))
            known.append(shared)
        else:
            nonzero = _unpacked(shared.bits, flat.numel())
        parts = {"form": "bitmask", "mask": shared.bits}
    return {
        MARK: 1,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "stride": list(tensor.stride()),
        **parts,
        "values": flat.index_select(0, torch.from_numpy(np.flatnonzero(nonzero))),
    }


def _position(count: int) -> type[np.uint16 | np.uint32]:
    """Return the smallest type that holds every position among `count` elements."""
    return np.uint16 if count <= 2**16 else np.uint32


def _unpacked(bits: Tensor, count: int) -> np.ndarray:
    return np.unpackbits(bits.numpy(), count=count).view(np.bool_)


def _restore(form: dict[str, Any]) -> Tensor:
    try:
        dtype = getattr(torch, form["dtype"])
        shape, values = torch.Size(form["shape"]), form["values"]
        count = shape.numel()
        if form["form"] == "index":
            where = form["index"].numpy().view(_position(count)).astype(np.int64)
        else:
            where = np.flatnonzero(_unpacked(form["mask"], count))
        if values.dtype != dtype or values.dim() != 1:
            raise ValueError(f"its values are {values.dtype}, {values.dim()}-D")
        dense = torch.zeros(count, dtype=dtype).index_copy_(0, torch.from_numpy(where), values).view(shape)
        if list(dense.stride()) == form["stride"]:
            return dense
        return torch.empty_strided(shape, form["stride"], dtype=dtype).copy_(dense)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise _damaged(error) from None


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    apply(value, lambda tensor: found.append(tensor))
    return found


def apply(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a nested state with each tensor replaced by its `change`."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        if MARK in value:
            raise CheckpointError(f"A state with a key {MARK!r} cannot be saved: the name is taken.")
        return {key: apply(child, change) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(apply(child, change) for child in value)
    return value
