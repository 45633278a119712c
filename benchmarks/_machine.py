"""What every benchmark reports: the machine that it ran on, and its samples in four numbers."""

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Summary:
    """Samples in four numbers, in the unit of the samples."""

    n: int
    median: float
    min: float
    max: float

    @property
    def spread(self) -> float:
        """The range as a fraction of the median."""
        return (self.max - self.min) / self.median


def summary(samples: Sequence[float]) -> Summary:
    """The median and the range of one sample or more."""
    return Summary(len(samples), statistics.median(samples), min(samples), max(samples))


def machine() -> str:
    """The processor, its cores, torch's threads and version; with the GPU when there is one."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    facts = [cpu, f"{os.cpu_count()} cores", f"{torch.get_num_threads()} thread(s)"]
    if torch.cuda.is_available():
        facts.append(torch.cuda.get_device_name())
    return ", ".join([*facts, f"torch {torch.__version__}"])
