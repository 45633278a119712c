"""The time and the memory that a run takes, over all of its attempts."""

import contextlib
import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from peakpoint.base.errors import UserError
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.history import read_rows

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of the unit of getrusage."""


class Usage:
    """Counts the seconds of a run and its peak memory; those of earlier attempts are added.

    The memory is that of torch's allocator on CUDA, of the whole process on the CPU.
    """

    def __init__(self, run: Path, device: torch.device) -> None:
        self._seconds, self._memory = _earlier(run)
        self._device, self._since = device, time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:  # else an earlier job of this process would count
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def seconds(self) -> float:
        """Return the seconds of all attempts until now."""
        return round(self._seconds + time.perf_counter() - self._since, 3)

    def facts(self) -> dict[str, Any]:
        """Return seconds and peak memory in bytes, as status.json has them."""
        if self._device.type == "cuda":
            now = torch.cuda.max_memory_allocated(self._device)
        else:
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
        return {"seconds": self.seconds(), "peak_memory": max(self._memory, now)}


def _earlier(run: Path) -> tuple[float, int]:
    """Return the seconds and the peak memory that earlier attempts recorded.

    One that was killed left its seconds in the row of its latest evaluation.
    """
    seconds, memory = 0.0, 0
    with contextlib.suppress(UserError):
        status = run_record.read_status(run)
        seconds = run_record.number(status, "seconds") or 0.0
        memory = int(run_record.number(status, "peak_memory") or 0)
    with contextlib.suppress(UserError):
        seconds = max([seconds, *filter(math.isfinite, read_rows(run).seconds)])
    return seconds, memory
