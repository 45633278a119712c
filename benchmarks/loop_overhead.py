"""What the loop costs: ours and that of Lightning's Trainer, against a bare PyTorch loop.

    python -m benchmarks.loop_overhead [--repeats 20] [--model mlp] [--checkpoint-every 50]

Every arm gets the same network, batches, fused AdamW and schedule, built by trainer/build.py from the default
configuration, and must end with the same weights. Ours is Loop.fit with all that a run has: publisher,
checkpoint manager, default policies, metrics.jsonl, TensorBoard, console. Every arm reads the loss each 50
steps. Within one long epoch the arms take turns, in random order, so that a busy machine slows all of them;
each ratio is to the bare loop's turn of the same round, and the second bare arm shows what the machine alone
does. Building, and what follows the epoch (ours evaluates and saves there), are not timed.

With --checkpoint-every the bare loop calls torch.save, without fsync, Lightning uses its ModelCheckpoint, and
ours saves as in a run but for one thing: each turn ends when its saves are on disk, which a run does not wait
for. What steps cost after that, with all cores in use, is measured by after_saves.py.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Semaphore
from typing import Any

import torch
from torch import Tensor

from benchmarks._harness import arguments, ratio, show, summary, turns
from benchmarks._loop_arms import (
    AGAIN,
    BARE,
    LIGHTNING,
    LOG_EVERY,
    OURS,
    Arm,
    Batches,
    Trial,
    bare,
    compose,
    lightning_arm,
    ours,
    quieten,
)
from peakpoint.trainer.build import build
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.data.pipeline import DataModule


class Turns(Batches):
    """Takes turns of a fixed number of steps, in which background work ends; notes the seconds of each."""

    def __init__(self, data: DataModule, steps: int) -> None:
        super().__init__(data)
        self._steps = steps
        self._go, self._done = Semaphore(0), Semaphore(0)
        self.over = False

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._batches(1)
        for _ in range(self._length // self._steps):
            begin = time.perf_counter()
            for _ in range(self._steps):
                yield next(batches)
            self.settle()
            self.seconds.append(time.perf_counter() - begin)
            self._done.release()
            self._go.acquire()
        yield from batches  # one: the last turn ends, like the others, when the batch after it is asked for

    def run(self, arm: Callable[[], None]) -> None:
        """Train on this thread, one turn at a time."""
        self._go.acquire()
        try:
            arm()
        finally:
            self.over = True
            self._done.release()

    def take(self) -> None:
        """Let the arm have its next turn, and wait for its end."""
        if not self.over:
            self._go.release()
            self._done.acquire()


def compose_for(options: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """Return the configuration of one epoch of small grey images, enough for every turn."""
    return compose(
        options.batch_size * (options.steps * (options.repeats + 1) + 1),
        f"model={options.model}",
        "data.channels=1",
        "data.native_size=28",
        "data.crop_padding=0",
        f"batch_size={options.batch_size}",
        f"precision={options.precision}",
        f"threads={options.threads}",
        f"checkpoint.interval_steps={options.checkpoint_every or 'null'}",
    )


def measure(arms: dict[str, Arm], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return milliseconds a step of each arm in each turn but the first. Exits when an arm did other work."""
    config, resolved = compose_for(options)
    trials: dict[str, Trial] = {}
    batches: dict[str, Turns] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(arms)) as pool:
        for name in arms:
            parts = build(config, resolved)
            place = Path(folder, name)
            place.mkdir()
            batches[name] = Turns(parts.data, options.steps)
            trials[name] = Trial(config, parts, batches[name], place, options.checkpoint_every)
        running = [pool.submit(batches[name].run, partial(arms[name], trials[name])) for name in arms]
        # One turn more to warm up, and one in which the training ends.
        turns({name: batches[name].take for name in arms}, options.repeats + 2)
        for training in running:
            training.result()
    weights = {name: list(trial.parts.state.model.parameters()) for name, trial in trials.items()}
    for name in arms:
        if not all(map(torch.equal, weights[name], weights[BARE])):
            raise SystemExit(f"error: {name} ended with other weights than {BARE}: it did other work.")
    return {name: [1e3 * s / options.steps for s in batches[name].seconds[1:]] for name in arms}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=20)
    parser.add_argument("--model", default="mlp", help="mlp, lenet5, resnet20, ...")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=50, help="steps in a turn")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--checkpoint-every", type=int, default=0, metavar="STEPS", help="0: none is timed")
    options = parser.parse_args()
    for period in (LOG_EVERY, options.checkpoint_every or 1):
        if options.steps % period:
            parser.error(
                f"--steps={options.steps} must be a multiple of {period}: all turns are to be alike."
            )
    quieten()
    arms: dict[str, Arm] = {BARE: bare, AGAIN: bare, OURS: ours}
    if find_spec("lightning"):
        arms[LIGHTNING] = lightning_arm()
    else:
        print("lightning is not installed, so that arm is left out: pip install -e '.[bench]'")
    times = measure(arms, options)
    rows = {name: [f"{summary(ms):.3f}", f"{ratio(ms, times[BARE]):.3f}"] for name, ms in times.items()}
    title = f"{options.model}, batch {options.batch_size}, {options.steps} steps a turn, n={options.repeats}"
    show(title, ["ms a step", "to bare"], rows)


if __name__ == "__main__":
    main()
