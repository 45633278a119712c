"""What the loop costs: ours and that of Lightning's Trainer, against a bare PyTorch loop.

    python -m benchmarks.loop_overhead [--repeats 20] [--model mlp] [--checkpoint-every 50] [--json FILE]

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
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Semaphore
from typing import Any

import torch
from torch import Tensor

from benchmarks._loop_arms import (
    AGAIN,
    BARE,
    LIGHTNING,
    LOG_EVERY,
    OURS,
    Arm,
    Trial,
    bare,
    compose,
    lightning_arm,
    ours,
    quieten,
)
from benchmarks._machine import machine, summary
from peakpoint.trainer.build import build
from peakpoint.trainer.config.check import register_schemas
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.data.pipeline import DataModule


class Turns:
    """An epoch's batches, in turns of a fixed number of steps; records the seconds of each."""

    def __init__(self, data: DataModule, steps: int) -> None:
        self._batches, self._length, self._steps = data.train_batches, data.steps_per_epoch, steps
        self._go, self._done = Semaphore(0), Semaphore(0)
        self.seconds: list[float] = []
        self.over = False
        self.settle: Callable[[], None] = lambda: None  # an arm's work in the background ends within its turn

    def __len__(self) -> int:
        return self._length

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
        """On a thread of its own: train, one turn at a time."""
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
    """One epoch of small grey images, enough for every turn."""
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
    """Milliseconds a step of each arm in each turn, the first left out. Exits when an arm did other work."""
    config, resolved = compose_for(options)
    order, shuffled = list(arms), random.Random(0)
    trials: dict[str, Trial] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(arms)) as pool:
        for name in arms:
            parts = build(config, resolved)
            place = Path(folder, name)
            place.mkdir()
            turns = Turns(parts.data, options.steps)
            trials[name] = Trial(config, parts, turns, place, options.checkpoint_every)
        running = [pool.submit(t.batches.run, partial(arms[name], t)) for name, t in trials.items()]
        while not all(trial.batches.over for trial in trials.values()):
            shuffled.shuffle(order)
            for name in order:
                trials[name].batches.take()
        for training in running:
            training.result()
    weights = {name: list(trial.parts.state.model.parameters()) for name, trial in trials.items()}
    for name in arms:
        if not all(map(torch.equal, weights[name], weights[BARE])):
            raise SystemExit(f"error: {name} ended with other weights than {BARE}: it did other work.")
    return {name: [1e3 * s / options.steps for s in t.batches.seconds[1:]] for name, t in trials.items()}


def report(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Print a line an arm; returns the same figures."""
    figures: dict[str, dict[str, Any]] = {}
    print(f"{'':<14}{'ms a step':>10}{'steps/s':>9}   to bare: {'median':>7}{'min':>7}{'max':>7}")
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, times[BARE], strict=True)]
        step, ratio = summary(values), summary(ratios)
        print(
            f"{name:<14}{step.median:>10.3f}{1e3 / step.median:>9.0f}"
            f"{ratio.median:>20.3f}{ratio.min:>7.3f}{ratio.max:>7.3f}"
        )
        figures[name] = {"ms_per_step": values, "ratios": ratios, "median_ratio": ratio.median}
    return figures


def main() -> None:
    """Measure, print a table, and write the figures as JSON when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mlp", help="mlp, lenet5, resnet20, ...")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20, help="turns of each arm, after one to warm up")
    parser.add_argument("--steps", type=int, default=50, help="steps in a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--checkpoint-every", type=int, default=0, metavar="STEPS", help="0: none is timed")
    parser.add_argument("--self-log", action="store_true", help="Lightning: self.log the loss at every step")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    for period in (LOG_EVERY, options.checkpoint_every or 1):
        if options.steps % period:
            parser.error(
                f"--steps={options.steps} must be a multiple of {period}: all turns are to be alike."
            )
    quieten()
    register_schemas()
    arms: dict[str, Arm] = {BARE: bare, AGAIN: bare, OURS: ours}
    if find_spec("lightning"):
        arms[LIGHTNING] = lightning_arm(1 if options.self_log else LOG_EVERY)
    else:
        print("lightning is not installed, so that arm is left out: pip install -e '.[bench]'")
    times = measure(arms, options)
    where = machine() + (f", lightning {version('lightning')}" if LIGHTNING in arms else "")
    print(where)
    print(f"{options.model}, batch {options.batch_size}, {options.steps} steps a turn, n={options.repeats}")
    figures = report(times)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        text = json.dumps({"machine": where, "settings": settings, "arms": figures}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
