"""What a folder of thousands of checkpoints costs: to list it, to start in it, and to save into it.

    python -m benchmarks.many_checkpoints [--count 10000] [--repeats 5]

The checkpoints are real, made by the store, of one small file under as many names. `ls` is the command as
typed, its start included; `start` finds the newest checkpoint that verifies and opens the store, as a resume
does; `save` is one of the checkpoint manager with the rolling policy, which keeps them all, and `empty` the
same in an empty folder. The peer reads the same manifests with os.scandir and json.load, without checking
their digests.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks._harness import ROOT, arguments, rolling, show, summary, timed, turns, verdict
from peakpoint.checkpointing.events import StepEnd
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import locate
from peakpoint.checkpointing.storage.manifest import TRAINING, Manifest
from peakpoint.checkpointing.storage.store import Store

RUN = "benchmark"
GOAL_S = 2.0
STATE = {"model_state_dict": {"w": torch.zeros(64)}}


def fill(root: Path, count: int) -> None:
    """Make `count` checkpoints of one run, names for the same bytes; not synced."""
    synced, os.fsync = os.fsync, lambda _: None
    try:
        target = Store(root, RUN)
        first = Manifest(
            file=_file(1), tier=TRAINING, tags=("interval",), policies=("interval",), reasons=("every step",),
            sequence=0, run=RUN, epoch=1, global_step=1, metrics={"accuracy": 0.5, "loss": 1.5}, sparsity=0.7,
        )  # fmt: skip
        bytes_of = target.save([first], lambda file: serialize.dump(STATE, file))[0]
        for step in range(2, count + 1):
            target.share(bytes_of, replace(first, file=_file(step), global_step=step))
    finally:
        os.fsync = synced


def _file(step: int) -> str:
    return f"{TRAINING}/checkpoint_epoch_0001_step_{step:08d}.pt"


def ls(root: Path) -> None:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "peakpoint", "ls", str(root)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def start(root: Path) -> None:
    """Find the newest checkpoint and open the store, as a resume does before it loads."""
    found = locate.newest_verified(root)
    assert found.manifest is not None
    Store(root, found.manifest.run)


def saves(root: Path) -> Callable[[], None]:
    """Return a function that saves once, into a folder that was opened before."""
    target = Store(root, RUN)
    manager = rolling(target, lambda: dict(STATE), background=False)
    step = max((m.global_step for m in target.mine()), default=0)

    def save() -> None:
        nonlocal step
        step += 1
        manager.handle(StepEnd(1, step))

    save()  # the first also looks what is there
    return save


def peer(root: Path) -> None:
    """Read every manifest as a script would."""
    with os.scandir(root / TRAINING) as entries:
        for entry in entries:
            if entry.name.endswith(".json"):
                with Path(entry.path).open(encoding="utf-8") as file:
                    json.load(file)


def measure(folder: Path, count: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each arm."""
    full, empty = folder / "full" / "checkpoints", folder / "empty" / "checkpoints"
    fill(full, count)
    empty.mkdir(parents=True)
    arms: dict[str, Callable[[], object]] = {
        "ls": lambda: ls(full),
        "start": lambda: start(full),
        "save": saves(full),
        "save, empty": saves(empty),
        "peer": lambda: peer(full),
    }
    return turns({name: timed(work) for name, work in arms.items()}, repeats)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--count", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("peakpoint").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.count, options.repeats)
    rows = {name: [f"{summary(seconds):.3f}"] for name, seconds in found.items()}
    show(f"{options.count} checkpoints, n={options.repeats}", ["seconds"], rows)
    for name in ("ls", "start"):
        print(verdict(f"{name}, seconds", summary(found[name]), GOAL_S))


if __name__ == "__main__":
    main()
