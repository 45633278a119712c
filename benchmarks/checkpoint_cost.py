"""What a checkpoint costs: time, the stall that training sees, bytes and memory, beside what others take.

    python -m benchmarks.checkpoint_cost [--sparsity 0 0.7 0.9] [--repeats 7] [--folder DIR]
    python -m benchmarks.checkpoint_cost --device cuda

The state is that of ResNet-50 with 100 classes and AdamW after some pruned steps. Every arm saves the same
state into a new folder; the arms take turns in random order within each repeat, and one turn before does not
count. `x` is the time to that of `raw write + fsync` in the same repeat, which writes the bytes of
torch.save's file in one go: the limit of the disk. Ours is the checkpoint manager with its background
writing: digested, file, manifest and directory synced, journal and pointer written. `stall` is the time until
training may change the state again, all of it for those that write at once; on CUDA `thread` is when the
training thread goes on.

Memory is the peak of resident memory during two saves in a row, above what the process holds before them, in
a new process for each arm, on a CPU only: pinned memory is not all counted as resident. `nothing` shows what
the measure itself takes, `plain host copy` that it sees a copy. Arms whose package is missing are left out
with a line.
"""

import argparse
import ctypes
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._checkpoint_arms import (
    ARMS,
    COPY,
    DIGEST,
    DURABLE,
    OURS,
    PACK,
    PACKED,
    PEERS,
    RAW,
    SHA,
    UNPACK,
    VERIFY,
    Subject,
    small,
    subject,
    tensors,
)
from benchmarks._machine import machine, summary

Result = dict[str, Any]
"""Of an arm: `thread`, `stall` and `total` in seconds and `x`, one for each repeat; `bytes`; `memory`."""


def written(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def measure(of: Subject, names: list[str], repeats: int, folder: Path) -> dict[str, Result]:
    """Each arm `repeats` times, in turns."""
    made = {}
    for name in names:
        try:
            made[name] = ARMS[name](of)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    results: dict[str, Result] = {name: {"thread": [], "stall": [], "total": []} for name in made}
    for repeat in range(repeats + 1):
        for name in random.sample(list(made), len(made)):
            # This file system alone: others may be in the middle of a test that cuts their power.
            subprocess.run(["sync", "-f", str(folder)], check=True)
            with tempfile.TemporaryDirectory(dir=folder) as place:
                try:
                    cost = made[name](Path(place))
                except Exception as error:
                    if repeat or name not in PEERS:
                        raise
                    # Such as DCP's staging on CUDA in torch 2.11: the others are measured all the same.
                    print(f"{name} is left out, it failed: {type(error).__name__}: {error}", file=sys.stderr)
                    del made[name], results[name]
                    continue
                results[name]["bytes"] = written(Path(place))
            if repeat == 0:
                results[name]["first"] = cost.stall
                continue
            for what, seconds in vars(cost).items():
                results[name][what].append(seconds)
    for result in results.values():
        limits = results.get(RAW, result)["total"]
        result["x"] = [total / limit for total, limit in zip(result["total"], limits, strict=True)]
    return results


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def memory(name: str, of: Subject, folder: Path) -> int:
    """The bytes that two saves take at their peak, beside the state; in a process that did nothing before."""
    arm, first = ARMS[name](of), ARMS[name](small(of.device))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        first(Path(place))  # what is loaded late is no matter of size
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    for _ in range(2):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            arm(Path(place))
    return _status("VmHWM") - before


def memory_apart(name: str, sparsity: float, folder: Path) -> int:
    """`memory` in a new process."""
    command = [sys.executable, "-m", "benchmarks.checkpoint_cost", "--memory-of", name]
    command += [
        "--sparsity",
        str(sparsity),
        "--folder",
        str(folder),
        "--threads",
        str(torch.get_num_threads()),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


def table(results: dict[str, Result], *, cuda: bool) -> list[str]:
    """The arms in lines."""
    head = f"{'':26}{'total':>8}{'min-max':>16}{'x':>7}{'min-max':>14}{'stall':>9}{'min-max':>16}"
    lines = [head + f"{'thread' if cuda else '':>9}{'first':>8}{'MB':>8}{'memory MB':>11}"]
    for name, result in results.items():
        total, x, stall = (summary(result[what]) for what in ("total", "x", "stall"))
        line = f"{name:26}{total.median:8.3f}{f'{total.min:.3f}-{total.max:.3f}':>16}{x.median:7.2f}"
        line += f"{f'{x.min:.2f}-{x.max:.2f}':>14}{stall.median:9.4f}{f'{stall.min:.4f}-{stall.max:.4f}':>16}"
        line += f"{summary(result['thread']).median:9.4f}" if cuda else " " * 9
        line += f"{result['first']:8.3f}{result['bytes'] / 1e6:8.1f}"
        lines.append(line + (f"{result['memory'] / 1e6:11.1f}" if "memory" in result else ""))
    return lines


def goals(results: dict[str, Result]) -> list[str]:
    """What was asked for, and whether this run meets it; each by the ratio within a repeat."""

    def ratio(name: str, what: str, to: str) -> list[float]:
        return [a / b for a, b in zip(results[name][what], results[to][what], strict=True)]

    def best(what: str, among: tuple[str, ...]) -> str:
        return min((p for p in among if p in results), key=lambda p: summary(results[p][what]).median)

    wanted = [("save, to raw write + fsync", OURS, "total", RAW, 1.1)]
    wanted.append(("save, to torch.save + fsync", OURS, "total", "torch.save + fsync", 1.0))
    if {VERIFY, SHA} <= results.keys():
        wanted.append(("verify, to SHA-256 of the same file", VERIFY, "total", SHA, 1 / 3))
    wanted.append(("stall, to a plain host copy", OURS, "stall", COPY, 1.1))
    if "pinned copy" in results:
        wanted.append(("stall, to a copy to pinned memory", OURS, "stall", "pinned copy", 1.1))
    peer = best("stall", PEERS)
    wanted.append((f"stall, to the shortest of a peer, {peer}", OURS, "stall", peer, 1.0))
    peer = best("total", DURABLE)
    wanted.append((f"save, to the quickest peer that syncs, {peer}", OURS, "total", peer, 1.0))
    peer = best("total", PEERS)
    wanted.append((f"save, to the quickest peer of all, {peer}", OURS, "total", peer, 1.0))
    wanted += [
        (f"{name}, to raw write + fsync of the dense", name, "total", RAW, 1.0)
        for name in (PACK, UNPACK)
        if name in results
    ]
    lines = []
    for sentence, name, what, to, limit in wanted:
        found = summary(ratio(name, what, to))
        met = "met" if found.median <= limit else "not met"
        span = f"{found.median:.2f} ({found.min:.2f} to {found.max:.2f})"
        lines.append(f"{sentence}: {span}, at most {round(limit, 2)}: {met}")
    if DIGEST in results:
        alone = summary(ratio(DIGEST, "total", RAW))
        span = f"{alone.median:.2f} ({alone.min:.2f} to {alone.max:.2f})"
        lines.append(f"what the digest alone costs, to raw write + fsync: {span}")
    share = results[PACKED]["bytes"] / results[OURS]["bytes"]
    return [*lines, f"compressed bytes, to dense: {share:.1%} (at 90 % sparsity at most 14 %)"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.7, 0.9])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where to write: the disk to measure")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(memory(options.memory_of, subject(options.sparsity[0], options.device), options.folder))
        return
    cuda, results, size = options.device.type == "cuda", {}, 0
    for sparsity in options.sparsity:
        of = subject(sparsity, options.device)
        size = sum(t.nbytes for t in tensors(of.state))
        results[sparsity] = measure(of, options.arms, options.repeats, options.folder)
        del of
        for name, result in results[sparsity].items():
            if not cuda and not options.no_memory:
                result["memory"] = memory_apart(name, sparsity, options.folder)
    if options.json:
        print(json.dumps({"machine": machine(), "results": results}, indent=2))
        return
    print(f"{machine()}, {time.strftime('%Y-%m-%d')}, n={options.repeats}, medians, seconds")
    print(f"{size / 1e6:.1f} MB of tensors on {options.device}; first: the stall of the very first save")
    for sparsity, by_arm in results.items():
        print(f"\nsparsity {sparsity:.0%}")
        print("\n".join(table(by_arm, cuda=cuda)))
        if {RAW, COPY, OURS, PACKED, *DURABLE} <= by_arm.keys():
            print("\n".join(goals(by_arm)))


if __name__ == "__main__":
    main()
