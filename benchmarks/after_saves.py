"""What a step costs once ten checkpoints were saved in the background, and how quick a default run is.

    python -m benchmarks.after_saves [--model resnet20] [--precision bf16] [--threads N] [--repeats 7]
    python -m benchmarks.after_saves --default-run [--repeats 5]

The first: a bare loop that saves nothing, ours with the default run's settings, and Lightning with its
ModelCheckpoint, all cores as threads. Each is a process of its own, since threads of one slow another's: it
trains, saves `--saves` times, `--every` steps apart, lets the last save end, and then times `--steps` steps
without a save. A round runs all of them in random order, and ratios are taken within a round. `before` is
the same before the first save.

The second: `train.py model=resnet20` as it is without options, on random images of CIFAR's size, beside a
plain loop as people write it: DataLoader, torchvision's transforms on PIL images, float32. Images a second
from the first logged step on, evaluation and saving left out, data included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from torch import Tensor

from benchmarks._harness import ROOT, arguments, ratio, show, summary, turns, verdict
from benchmarks._loop_arms import (
    BARE,
    LIGHTNING,
    OURS,
    Batches,
    Trial,
    bare,
    compose,
    lightning_arm,
    ours,
    quieten,
)
from benchmarks._plain_loop import images_per_second, write_images
from peakpoint.trainer.build import build
from peakpoint.trainer.data.pipeline import DataModule

GOAL = 1.02
PLAIN = {"plain loop": 0, "plain loop, 2 workers": 2}


class Timed(Batches):
    """Notes the seconds from each batch to the next, and settles once before `settle_at`."""

    def __init__(self, data: DataModule, settle_at: int) -> None:
        super().__init__(data)
        self._settle_at = settle_at

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(self._batches(1)):
            if index == self._settle_at:
                self.settle()
            begin = time.perf_counter()
            yield batch
            self.seconds.append(time.perf_counter() - begin)


def train(arm: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Return milliseconds a step of one arm before its first and after its last save, in this process."""
    quieten()
    # Lightning fetches a batch ahead: one more between the last save and what is timed.
    last = options.saves * options.every
    config, resolved = compose(
        options.batch_size * (last + options.steps + 2),
        f"model={options.model}",
        "data.channels=3",
        "data.native_size=32",
        f"batch_size={options.batch_size}",
        f"precision={options.precision}",
        f"threads={options.threads}",
        f"checkpoint.interval_steps={options.every}",
    )
    parts = build(config, resolved)
    batches = Timed(parts.data, last + 1)
    run = {BARE: bare, OURS: ours}.get(arm) or lightning_arm()
    run(Trial(config, parts, batches, folder, 0 if arm == BARE else options.every, last))
    before = batches.seconds[1 : options.every]
    after = batches.seconds[last + 1 : last + 1 + options.steps]
    return {"before": 1e3 * statistics.median(before), "after": 1e3 * statistics.median(after)}


def measure(arms: list[str], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Return the results of `train` for each arm in each round, in processes of their own."""
    command = [sys.executable, "-m", "benchmarks.after_saves", *sys.argv[1:], "--arm"]

    def in_process(arm: str) -> dict[str, float]:
        done = subprocess.run([*command, arm], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return times

    return turns({arm: partial(in_process, arm) for arm in arms}, options.repeats)


def report(found: dict[str, list[dict[str, float]]], title: str) -> None:
    """Print a line an arm, and the goal with what was found."""
    before = {arm: [times["before"] for times in rounds] for arm, rounds in found.items()}
    after = {arm: [times["after"] for times in rounds] for arm, rounds in found.items()}
    ratios = {arm: ratio(values, after[BARE]) for arm, values in after.items()}
    rows = {
        arm: [f"{summary(before[arm]).median:.1f}", f"{summary(after[arm]).median:.1f}", f"{ratios[arm]:.3f}"]
        for arm in found
    }
    show(title, ["ms before", "ms after", "to bare, after"], rows)
    print(verdict("a step after the last save, to the bare loop's", ratios[OURS], GOAL))


def default_run(options: argparse.Namespace) -> dict[str, list[float]]:
    """Return images a second of a default run and of the plain loop, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        root, number = Path(folder), count()
        write_images(root, options.batch_size * (options.steps + 1) + 1000)
        arms = {OURS: lambda: _run_rate(root, root / f"run-{next(number)}", options)}
        for name, workers in PLAIN.items():
            size = (options.batch_size, options.steps, workers)
            arms[name] = partial(images_per_second, root, options.model, *size)
        return turns(arms, options.repeats)


def _run_rate(data: Path, run: Path, options: argparse.Namespace) -> float:
    """Return images a second of `train.py`, from its metrics.jsonl."""
    asked = (
        f"model={options.model}",
        "data=npz",
        f"data.root={data}",
        "device=cpu",
        "test=false",
        f"batch_size={options.batch_size}",
        f"max_steps={options.steps}",
        f"log_every={max(1, options.steps // 5)}",
        f"hydra.run.dir={run}",
    )
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *asked], cwd=data, check=True, stdout=subprocess.DEVNULL
    )
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    rates = [row["images_per_second"] for row in rows if row["kind"] == "train"]
    return statistics.median(rates[1:] or rates)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=7, threads=os.cpu_count())
    parser.add_argument("--default-run", action="store_true", help="the second of the two")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument("--every", type=int, default=10, metavar="STEPS", help="between two saves")
    parser.add_argument("--steps", type=int, default=60, help="timed after the last save")
    parser.add_argument("--arm", choices=[BARE, OURS, LIGHTNING], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(train(options.arm, options, Path(folder))))
        return
    title = f"{options.model}, batch {options.batch_size}, n={options.repeats}"
    if options.default_run:
        rates = default_run(options)
        rows = {name: [f"{summary(values):.0f}"] for name, values in rates.items()}
        show(title, ["images/s"], rows)
    else:
        arms = [BARE, OURS, *[LIGHTNING] * bool(find_spec("lightning"))]
        settings = f"{options.precision}, {options.threads} threads, {options.saves} saves"
        report(measure(arms, options), f"{title}, {settings}")


if __name__ == "__main__":
    main()
