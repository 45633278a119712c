"""State to bytes and back: tensors and plain types only, so that `weights_only=True` opens every file.

Snapshots of a training use the same buffers one after another: fresh memory costs a page fault a page, and
pinned memory much more. On CUDA a side stream fills pinned buffers: the training thread continues at once,
the training stream when the copy is done, since what it does next may write over what is copied.
"""

import logging
import pickle
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from peakpoint.base import given
from peakpoint.base.digests import BLAKE3, Hasher, hasher, named
from peakpoint.base.disk_space import check_memory, tensor_bytes
from peakpoint.base.errors import CheckpointError, first_line
from peakpoint.base.files import Staged
from peakpoint.checkpointing.state import archive, packing
from peakpoint.checkpointing.state.archive import PLAIN

log = logging.getLogger("peakpoint")


def snapshot(state: Any) -> Any:
    """Copy a nested state to host memory in one pass; the copy shares nothing with the state.

    Tensors keep their strides, and tensors that share memory in the state share it in the copy. Raises
    CheckpointError naming the key of anything that is neither a tensor nor of a plain type (str, int, float,
    bool, None, bytes, list, tuple, dict): a checkpoint must open without unpickling classes.
    """
    return copy_state(state, lambda tensor: tensor.to("cpu", copy=True))


def _path(where: tuple[Any, ...]) -> str:
    """Return a place given as nested pairs of container and key: `state['a'][1]` for (((), "a"), 1)."""
    return f"{_path(where[0])}[{where[1]!r}]" if where else "state"


def copy_state(
    value: Any,
    copy: Callable[[Tensor], Tensor],
    where: tuple[Any, ...] = (),
    seen: dict[tuple[Any, ...], Tensor] | None = None,
) -> Any:
    """Return a nested state with each tensor replaced by its `copy`, made once for tensors that share memory.

    `where` is the place of `value` and `seen` the copies so far, in recursive calls. Raises CheckpointError
    as `snapshot` does.
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
        return {k: copy_state(v, copy, (where, k), seen) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copy_state(v, copy, (where, i), seen) for i, v in enumerate(value))
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


Form = tuple[torch.dtype, torch.Size, tuple[int, ...], bool]
"""Kind of tensor that a buffer fits: type, shape, strides, and whether it is on CUDA."""

Move = tuple[Tensor, Tensor]
"""Buffer and source of a copy."""


@dataclass
class Snapshot:
    """A copy of a state. After `release` its buffers may be used for the next snapshot.

    Once `state` was read, `stall_s` is the time in seconds that the copy kept a training stream waiting; 0.0
    without CUDA, where the copy is complete from the start.
    """

    _state: Any
    _copies: list[tuple[torch.cuda.Event, torch.cuda.Event]]
    released: bool = False
    stall_s: float = 0.0

    @property
    def state(self) -> Any:
        """Return the state, tensors on the CPU and plain types, once all of it is in host memory."""
        if self.released:
            raise RuntimeError("A snapshot was read after its release: its memory may hold another by now.")
        for start, end in self._copies:
            end.synchronize()
            self.stall_s = max(self.stall_s, start.elapsed_time(end) / 1e3)
        return self._state

    def release(self) -> None:
        """Give up the state: nobody reads it any more."""
        self.released, self._state = True, None


class SnapshotBuffers:
    """Host memory for the snapshots of one training, reused from one to the next.

    Only the buffers of the last snapshot are held. One that is not released when the next is made, because
    its save failed and is retried, keeps its buffers.
    """

    def __init__(self) -> None:
        self._last: Snapshot | None = None
        self._buffers: list[tuple[Form, Tensor]] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pin = True

    def snapshot(self, state: Any) -> Snapshot:
        """Copy a state as `snapshot` does, with the same errors, and SaveFailed when memory runs out.

        Tensors on CUDA are copied after the work queued on their device's current stream, which waits for the
        copy: work that is queued later does not change it. Other streams do not wait.
        """
        free: defaultdict[Form, list[Tensor]] = defaultdict(list)
        if self._last is not None and self._last.released:
            for form, buffer in self._buffers:
                free[form].append(buffer)
        self._last, self._buffers = None, []
        taken: list[tuple[Form, Tensor]] = []
        moves: defaultdict[torch.device, list[Move]] = defaultdict(list)
        here: list[Move] = []

        def placed(tensor: Tensor) -> Tensor:
            if tensor.is_quantized:  # a scale belongs to its memory
                return tensor.to("cpu", copy=True)
            strides = tensor.stride()
            if not tensor.is_contiguous():  # dense ones keep theirs, also channels_last
                strides = torch.empty_like(tensor, device="meta").stride()
            form = tensor.dtype, tensor.shape, strides, tensor.is_cuda
            buffer = free[form].pop() if free[form] else self._new(form)
            taken.append((form, buffer))
            (moves[tensor.device] if tensor.is_cuda else here).append((buffer, tensor))
            return buffer

        try:
            with torch.inference_mode(False), torch.no_grad():
                inside = copy_state(state, placed)
                free.clear()
                copies = [self._start(device, pairs) for device, pairs in moves.items()]
                for buffer, tensor in here:
                    buffer.copy_(tensor)
        except (MemoryError, RuntimeError) as error:
            check_memory(error, tensor_bytes(state))
            raise
        self._last, self._buffers = Snapshot(inside, copies), taken
        return self._last

    def _new(self, form: Form) -> Tensor:
        dtype, shape, strides, pinned = form
        if pinned and self._pin:
            try:
                return torch.empty_strided(shape, strides, dtype=dtype, device="cpu", pin_memory=True)
            except RuntimeError as error:  # the system may limit how much is pinned
                self._pin = False
                first = str(error).partition("\n")[0]
                log.warning("No pinned memory for snapshots, so that they take longer: %s", first)
        return torch.empty_strided(shape, strides, dtype=dtype, device="cpu")

    def _start(self, device: torch.device, moves: list[Move]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        """Start a copy on the side stream of a device; returns the events at its start and end."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        side, training = self._streams[device], torch.cuda.current_stream(device)
        # Without `blocking` the thread that waits for them would keep a core busy.
        start, end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        side.wait_stream(training)
        try:
            with torch.cuda.stream(side):
                start.record(side)
                for buffer, tensor in moves:
                    if tensor.stride() != buffer.stride() or tensor.is_conj() or tensor.is_neg():
                        tensor = tensor.clone()  # else the CPU would convert it before the copy is done
                    buffer.copy_(tensor, non_blocking=True)
                end.record(side)
        except BaseException:
            side.synchronize()  # or it would continue to fill buffers that are given up
            raise
        # Memory that is freed now may be reused on this stream, also by tensors that do not change in place.
        training.wait_event(end)
        return start, end


def digest(snapshot: Any) -> str:
    """Return the digest of a snapshot, equal only for equal keys, types, strides and values, bit for bit."""
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
    """Return the name of the first tensor that holds a NaN or an infinity, or None."""
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):  # a module's extra state may be anything
            continue
        if tensor.is_floating_point() and tensor.element_size() == 1:  # float8, which torch does not add up
            tensor = tensor.float()
        # The sum is finite only if every element is, short of an overflow, which the exact test settles.
        numbers = tensor.is_floating_point() or tensor.is_complex()
        if numbers and not tensor.sum().isfinite() and not tensor.isfinite().all():
            return name
    return None


def not_finite(name: str) -> CheckpointError:
    """Return the error for a state in which the tensor `name` holds a NaN or an infinity."""
    return CheckpointError(
        f"{name} holds NaN or infinite values: this state is not saved. Lower the learning rate, or clip the "
        "gradients."
    )


def dump(state: Any, file: BinaryIO | Staged, *, compress: bool = False) -> None:
    """Write a snapshot as a `.pt` file in one sequential pass; `compress` packs zeros away."""
    if compress:
        state = packing.pack(state)
    # The CRC of the zip format takes most of torch.save's CPU time, and the manifest has a digest.
    with_crc = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, cast(BinaryIO, file))  # it only writes and flushes
    except RuntimeError as error:
        # When a write fails or is interrupted, torch ends its zip file and complains of a wrong position.
        if isinstance(error.__context__, OSError | KeyboardInterrupt | SystemExit):
            raise error.__context__ from None
        raise
    finally:
        torch.serialization.set_crc32_options(with_crc)


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a `.pt` file onto a device, packed or not. Raises CheckpointError when it is not one.

    Never executes code from the file. Verify the digest first: torch.load does not notice flipped bits.
    """
    path = given.path(path)
    limit = archive.limit(path)
    archive.check_archive(path, limit)
    try:
        # To the CPU first: packed tensors are unpacked there.
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # its message explains how to execute the file all the same
        why = "it is damaged, or holds more than tensors and plain values"
        raise CheckpointError(f"{path} cannot be opened as a checkpoint: {why}.") from None
    except Exception as error:  # torch raises RuntimeError, EOFError, OSError and more
        first = first_line(error).rstrip(". ")
        raise CheckpointError(f"{path} cannot be opened as a checkpoint: {first}.") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {_name(state)} and not the dict of a checkpoint.")
    try:
        archive.check_bounds(state, limit)
    except ValueError as error:
        raise CheckpointError(f"{path} is refused: {error}.") from None
    unpacked: dict[str, Any] = packing.unpack(state, limit)
    return unpacked if torch.device(device).type == "cpu" else packing.apply(unpacked, lambda t: t.to(device))
