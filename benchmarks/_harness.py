"""What the benchmarks share: arguments, arms that take turns, samples in four numbers, and a table."""

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from peakpoint.checkpointing.manager import Manager, Options
from peakpoint.checkpointing.policies.interval import Interval
from peakpoint.checkpointing.storage.store import Store

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Summary:
    """Samples in numbers, in the unit of the samples; formatted as the median with the range."""

    median: float
    min: float
    max: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.min:{spec}} to {self.max:{spec}})"


def summary(samples: Sequence[float]) -> Summary:
    """Return the median and the range of one sample or more."""
    return Summary(statistics.median(samples), min(samples), max(samples))


def ratio(samples: Sequence[float], base: Sequence[float]) -> Summary:
    """Return the samples over those of another arm in the same repeat."""
    return summary([sample / other for sample, other in zip(samples, base, strict=True)])


def arguments(description: str | None, repeats: int, threads: int | None = 1) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each arm")
    parser.add_argument("--threads", type=int, default=threads, help="threads of torch")
    return parser


def turns(arms: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Return the results of each arm. They take turns in random order: a busy machine slows all."""
    order, shuffled = list(arms), random.Random(0)
    found: dict[str, list[T]] = {name: [] for name in arms}
    for _ in range(repeats):
        shuffled.shuffle(order)
        for name in order:
            found[name].append(arms[name]())
    return found


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """Return an arm that returns the seconds of the work."""

    def arm() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    return arm


def show(title: str, head: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Print the machine, a title, and a line for each arm."""
    print(f"{machine()}\n{title}")
    lines = [("", *head), *((name, *cells) for name, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        row = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        print("  ".join([name.ljust(widths[0]), *row]))


def verdict(what: str, found: Summary, limit: float) -> str:
    """Return a goal with what was found, and whether the median meets it."""
    met = "met" if found.median <= limit else "not met"
    return f"{what}: {found:.2f}, at most {round(limit, 2)}: {met}"


def rolling(
    store: Store, state: Callable[[], dict[str, Any]], *, background: bool, compress: bool = False
) -> Manager:
    """Return the checkpoint manager of a run, which saves after every step and keeps everything."""
    options = Options(
        background=background, on_error="stop", git_commit=None, resumed_from=None, compress=compress
    )
    policy = Interval(epochs=None, steps=1, keep_last=10**9).build()
    return Manager(store, {"interval": policy}, state, options=options)


def machine() -> str:
    """Return the processor, its cores, torch's threads and version, and the GPU if there is one."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    facts = [cpu, f"{os.cpu_count()} cores", f"{torch.get_num_threads()} thread(s)"]
    if torch.cuda.is_available():
        facts.append(torch.cuda.get_device_name())
    return ", ".join([*facts, f"torch {torch.__version__}"])
