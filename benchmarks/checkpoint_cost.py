"""What a checkpoint costs: time, the stall that training sees, bytes and memory, beside what others take.

    python -m benchmarks.checkpoint_cost [--sparsity 0 0.7 0.9] [--repeats 7] [--folder DIR]
    python -m benchmarks.checkpoint_cost --device cuda

The state is that of ResNet-50 with 100 classes and AdamW after some pruned steps. Every arm saves the same
state into a new folder; the arms take turns in random order within each repeat, and one turn before does not
count. `x` is the time to that of `raw write + fsync` in the same repeat, which writes the bytes of
torch.save's file in one go: the limit of the disk. Ours is the checkpoint manager with its background
writing: digested, file, manifest and directory synced, journal and pointer written. `stall` is the time until
training may change the state again, all of it for those that write at once; on CUDA `thread` is when the
training thread continues. `first` is the stall of the very first save.

Memory is the peak of resident memory during two saves in a row, above what the process holds before them, in
a new process for each arm, on a CPU only: pinned memory is not all counted as resident. `nothing` shows what
the measure itself takes, `plain host copy` that it sees a copy. Arms whose package is missing are left out
with a line.
"""

import argparse
import ctypes
import gc
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
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
    PINNED,
    RAW,
    SHA,
    UNPACK,
    VERIFY,
    Arm,
    Cost,
    Subject,
    small,
    subject,
    tensors,
)
from benchmarks._harness import arguments, ratio, show, summary, turns, verdict

Result = dict[str, Any]
"""Of an arm: `thread`, `stall` and `total` in seconds, one for each repeat; `first`; `bytes`; `memory`."""


def _save(arm: Arm, folder: Path) -> tuple[Cost, int]:
    """Save into a new folder; returns the cost and the bytes of all files."""
    # This file system alone: others may be in the middle of a test that cuts their power.
    subprocess.run(["sync", "-f", str(folder)], check=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        cost = arm(Path(place))
        files = [path for path in Path(place).rglob("*") if path.is_file() and not path.is_symlink()]
        return cost, sum(path.stat().st_size for path in files)


def measure(of: Subject, names: list[str], repeats: int, folder: Path) -> dict[str, Result]:
    """Run each arm `repeats` times, in turns, after one save that does not count."""
    arms, first = {}, {}
    for name in random.sample(names, len(names)):
        try:
            arm = ARMS[name](of)
            first[name], _ = _save(arm, folder)
            arms[name] = partial(_save, arm, folder)
        except Exception as error:  # not installed, or such as DCP's staging on CUDA in torch 2.11
            if name not in PEERS:
                raise
            print(f"{name} is left out: {type(error).__name__}: {error}", file=sys.stderr)
    results: dict[str, Result] = {}
    for name, saves in turns({name: arms[name] for name in names if name in arms}, repeats).items():
        costs = [vars(cost) for cost, _ in saves]
        results[name] = {what: [cost[what] for cost in costs] for what in ("thread", "stall", "total")}
        results[name] |= {"first": first[name].stall, "bytes": saves[-1][1]}
    return results


def _status(field: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def memory(name: str, of: Subject, folder: Path) -> int:
    """Return the peak bytes of two saves beside the state, in a process that did nothing before."""
    arm = ARMS[name](of)
    _save(ARMS[name](small(of.device)), folder)  # what is loaded late is no matter of size
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    for _ in range(2):
        _save(arm, folder)
    return _status("VmHWM") - before


def memory_apart(name: str, sparsity: float, options: argparse.Namespace) -> int:
    """Return `memory` of a new process."""
    command = [sys.executable, "-m", "benchmarks.checkpoint_cost", f"--memory-of={name}"]
    command += [f"--sparsity={sparsity}", f"--folder={options.folder}", f"--threads={options.threads}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


HEAD = ("total s", "x", "stall s", "thread s", "first s", "MB", "memory MB")


def table(results: dict[str, Result]) -> dict[str, list[str]]:
    """Return the cells of each arm."""
    rows = {}
    for name, result in results.items():
        to_raw = ratio(result["total"], results[RAW]["total"]) if RAW in results else None
        rows[name] = [
            f"{summary(result['total']):.3f}",
            f"{to_raw:.2f}" if to_raw else "",
            f"{summary(result['stall']):.4f}",
            f"{summary(result['thread']).median:.4f}",
            f"{result['first']:.3f}",
            f"{result['bytes'] / 1e6:.1f}",
            f"{result['memory'] / 1e6:.1f}" if "memory" in result else "",
        ]
    return rows


def goals(results: dict[str, Result]) -> list[str]:
    """Return each goal, and whether this run meets it by the ratio within a repeat."""

    def best(what: str, among: tuple[str, ...]) -> str:
        return min((p for p in among if p in results), key=lambda p: summary(results[p][what]).median)

    stall, durable, peer = best("stall", tuple(PEERS)), best("total", DURABLE), best("total", tuple(PEERS))
    wanted = [
        ("save, to raw write + fsync", OURS, "total", RAW, 1.1),
        ("save, to torch.save + fsync", OURS, "total", "torch.save + fsync", 1.0),
        ("verify, to SHA-256 of the same file", VERIFY, "total", SHA, 1 / 3),
        ("stall, to a plain host copy", OURS, "stall", COPY, 1.1),
        ("stall, to a copy to pinned memory", OURS, "stall", PINNED, 1.1),
        (f"stall, to the shortest of a peer, {stall}", OURS, "stall", stall, 1.0),
        (f"save, to the quickest peer that syncs, {durable}", OURS, "total", durable, 1.0),
        (f"save, to the quickest peer of all, {peer}", OURS, "total", peer, 1.0),
        (f"{PACK}, to raw write + fsync of the dense", PACK, "total", RAW, 1.0),
        (f"{UNPACK}, to raw write + fsync of the dense", UNPACK, "total", RAW, 1.0),
    ]
    lines = [
        verdict(sentence, ratio(results[name][what], results[to][what]), limit)
        for sentence, name, what, to, limit in wanted
        if {name, to} <= results.keys()
    ]
    if DIGEST in results:
        alone = ratio(results[DIGEST]["total"], results[RAW]["total"])
        lines.append(f"what the digest alone costs, to raw write + fsync: {alone:.2f}")
    share = results[PACKED]["bytes"] / results[OURS]["bytes"]
    return [*lines, f"compressed bytes, to dense: {share:.1%} (at 90 % sparsity at most 14 %)"]


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.7, 0.9])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where to write: the disk to measure")
    parser.add_argument("--memory-of", choices=list(ARMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(memory(options.memory_of, subject(options.sparsity[0], options.device), options.folder))
        return
    cuda = options.device.type == "cuda"
    arms = [name for name in options.arms if cuda or name != PINNED]
    for sparsity in options.sparsity:
        of = subject(sparsity, options.device)
        size = sum(t.nbytes for t in tensors(of.state))
        results = measure(of, arms, options.repeats, options.folder)
        del of
        if not cuda and not options.no_memory:
            for name, result in results.items():
                result["memory"] = memory_apart(name, sparsity, options)
        title = f"sparsity {sparsity:.0%}, {size / 1e6:.1f} MB of tensors on {options.device}"
        show(f"{title}, {time.strftime('%Y-%m-%d')}, n={options.repeats}", HEAD, table(results))
        if {RAW, COPY, OURS, PACKED, *DURABLE} <= results.keys():
            print("\n".join(goals(results)))


if __name__ == "__main__":
    main()
