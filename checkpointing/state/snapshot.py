"""Snapshots in host memory: one after another in the same buffers, and from CUDA without waiting for it.

Fresh memory costs a page fault a page, and pinned memory much more, so the buffers of the last snapshot serve
the next. On CUDA they are pinned and a side stream fills them: the training thread goes on at once, the
training stream when the copy is done, since what it does next may write over what is copied.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peakpoint.base.disk_space import check_memory, tensor_bytes
from peakpoint.checkpointing.state import serialize

log = logging.getLogger("peakpoint")

Form = tuple[torch.dtype, torch.Size, tuple[int, ...], bool]
"""What a buffer is good for: the type, the shape and the strides of a tensor, and whether it is on CUDA."""

Move = tuple[Tensor, Tensor]
"""Where to, and where from."""


@dataclass
class Snapshot:
    """A copy of a state. Whoever is done with it calls `release`, and its buffers may serve the next.

    Once `state` was read, `stall_s` is how many seconds the copy kept a training stream waiting: 0.0 without
    CUDA, where the copy is complete from the start.
    """

    _state: Any
    _copies: list[tuple[torch.cuda.Event, torch.cuda.Event]]
    released: bool = False
    stall_s: float = 0.0

    @property
    def state(self) -> Any:
        """The state, of tensors on the CPU and plain types, once all of it is in host memory."""
        if self.released:
            raise RuntimeError("A snapshot was read after its release: its memory may hold another by now.")
        for start, end in self._copies:
            end.synchronize()
            self.stall_s = max(self.stall_s, start.elapsed_time(end) / 1e3)
        return self._state

    def release(self) -> None:
        """Say that nobody reads it any more."""
        self.released, self._state = True, None


class Host:
    """Memory for the snapshots of one training.

    It holds the buffers of the last snapshot, and no others: those of one that is not released when the next
    is made, because its save failed and waits, are left to it.
    """

    def __init__(self) -> None:
        self._last: Snapshot | None = None
        self._buffers: list[tuple[Form, Tensor]] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pin = True

    def snapshot(self, state: Any) -> Snapshot:
        """Copy a state as `serialize.snapshot` does, with the same errors, and SaveFailed for want of memory.

        Tensors on CUDA are copied behind what their device's current stream was given before, and that
        stream waits for the copy: changes that it is given later do not show. Other streams do not wait.
        """
        free: defaultdict[Form, list[Tensor]] = defaultdict(list)
        if self._last is not None and self._last.released:
            for form, buffer in self._buffers:
                free[form].append(buffer)
        self._last, self._buffers = None, []
        taken: list[tuple[Form, Tensor]] = []
        moves: defaultdict[torch.device, list[Move]] = defaultdict(list)

        def placed(tensor: Tensor) -> Tensor:
            if tensor.is_quantized:  # a scale belongs to its memory
                return tensor.to("cpu", copy=True)
            strides = tensor.stride()
            if not tensor.is_contiguous():  # dense ones keep theirs, also channels_last
                strides = torch.empty_like(tensor, device="meta").stride()
            form = tensor.dtype, tensor.shape, strides, tensor.is_cuda
            buffer = free[form].pop() if free[form] else self._new(form)
            taken.append((form, buffer))
            moves[tensor.device].append((buffer, tensor))
            return buffer

        try:
            with torch.inference_mode(False), torch.no_grad():
                copied = serialize.copied(state, placed)
                free.clear()
                copies = [self._start(device, moves[device]) for device in moves if device.type == "cuda"]
                for device in moves:
                    if device.type != "cuda":
                        _copy(moves[device])
        except (MemoryError, RuntimeError) as error:
            check_memory(error, tensor_bytes(state))
            raise
        self._last, self._buffers = Snapshot(copied, copies), taken
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
        """Have the side stream of a device copy; returns what it passes before and after."""
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        side, training = self._streams[device], torch.cuda.current_stream(device)
        # Without `blocking` the thread that waits for them would keep a core busy.
        start, end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        side.wait_stream(training)
        try:
            with torch.cuda.stream(side):
                start.record(side)
                _copy(moves)
                end.record(side)
        except BaseException:
            side.synchronize()  # or it would go on to fill what was given up
            raise
        # Not only for what changes in place: memory that is freed now may be given to others on this stream.
        training.wait_event(end)
        return start, end


def _copy(moves: Iterable[Move]) -> None:
    """Fill buffers, from CUDA without waiting."""
    for buffer, tensor in moves:
        if tensor.is_cuda and (tensor.stride() != buffer.stride() or tensor.is_conj() or tensor.is_neg()):
            tensor = tensor.clone()  # what is no plain block would be finished on the CPU, before it is there
        buffer.copy_(tensor, non_blocking=tensor.is_cuda)
