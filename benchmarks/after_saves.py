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
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from benchmarks._loop_arms import BARE, LIGHTNING, OURS, Trial, bare, compose, lightning_arm, ours, quieten
from benchmarks._machine import machine, summary
from benchmarks._plain_loop import images_per_second, write_images
from peakpoint.trainer.build import build
from peakpoint.trainer.config.check import register_schemas
from peakpoint.trainer.data.pipeline import DataModule

ROOT = Path(__file__).resolve().parent.parent
GOAL = 1.02
PLAIN = {"plain loop": 0, "plain loop, 2 workers": 2}


class Timed:
    """An epoch's batches; notes the seconds from each to the next, and settles once before `settle_at`."""

    def __init__(self, data: DataModule, settle_at: int) -> None:
        self._batches, self._length, self._settle_at = data.train_batches, data.steps_per_epoch, settle_at
        self.settle: Callable[[], None] = lambda: None
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(self._batches(1)):
            if index == self._settle_at:
                self.settle()
            begin = time.perf_counter()
            yield batch
            self.seconds.append(time.perf_counter() - begin)


def train(arm: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Milliseconds a step of one arm before its first and after its last save; in a process of its own."""
    quieten()
    register_schemas()
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
    run = {BARE: lambda: bare, OURS: lambda: ours, LIGHTNING: lambda: lightning_arm(50)}[arm]()
    run(Trial(config, parts, batches, folder, 0 if arm == BARE else options.every, last))
    before = batches.seconds[1 : options.every]
    after = batches.seconds[last + 1 : last + 1 + options.steps]
    return {"before": 1e3 * statistics.median(before), "after": 1e3 * statistics.median(after)}


def measure(arms: list[str], options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """`before`, `after` and `ratio` to the bare loop of each arm in each round."""
    found: dict[str, dict[str, list[float]]] = {a: {"before": [], "after": [], "ratio": []} for a in arms}
    order, shuffled = list(arms), random.Random(0)
    for _ in range(options.repeats):
        shuffled.shuffle(order)
        for arm in order:
            for key, value in _in_process(arm).items():
                found[arm][key].append(value)
        for arm in arms:
            found[arm]["ratio"].append(found[arm]["after"][-1] / found[BARE]["after"][-1])
    return found


def _in_process(arm: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.after_saves", *sys.argv[1:], "--arm", arm]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    times: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return times


def report(found: dict[str, dict[str, list[float]]]) -> None:
    """Print a line an arm, and the goal with what was found."""
    print(f"{'':<12}{'ms before':>10}{'ms after':>10}   to bare: {'median':>7}{'min':>7}{'max':>7}")
    for arm, values in found.items():
        before, after, ratio = (summary(values[key]) for key in ("before", "after", "ratio"))
        print(
            f"{arm:<12}{before.median:>10.2f}{after.median:>10.2f}"
            f"{ratio.median:>20.3f}{ratio.min:>7.3f}{ratio.max:>7.3f}"
        )
    median = summary(found[OURS]["ratio"]).median
    verdict = "met" if median <= GOAL else "not met"
    print(f"a step after the last save at most {GOAL} of the bare loop's: {median:.3f}, {verdict}")


def default_run(options: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of a default run and of the plain loop, in turns; each in a process of its own."""
    found: dict[str, list[float]] = {OURS: [], **{name: [] for name in PLAIN}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root, options.batch_size * (options.steps + 1) + 1000)
        for number in range(options.repeats):
            found[OURS].append(_run_rate(root, root / f"run-{number}", options))
            for name, workers in PLAIN.items():
                size = (options.batch_size, options.steps)
                found[name].append(images_per_second(root, options.model, *size, workers))
    return found


def _run_rate(data: Path, run: Path, options: argparse.Namespace) -> float:
    """Images a second of `train.py`, from what it logs."""
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
    """Measure and print; with --json, write the figures too."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--default-run", action="store_true", help="the second of the two")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="all cores (default)")
    parser.add_argument("--saves", type=int, default=10)
    parser.add_argument("--every", type=int, default=10, metavar="STEPS", help="between two saves")
    parser.add_argument("--steps", type=int, default=60, help="timed after the last save")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--arm", choices=[BARE, OURS, LIGHTNING], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(train(options.arm, options, Path(folder))))
        return
    print(f"{machine()}; {options.model}, batch {options.batch_size}, n={options.repeats}")
    figures: object
    if options.default_run:
        figures = rates = default_run(options)
        for name, values in rates.items():
            rate = summary(values)
            print(f"{name:<22}{rate.median:>10.0f} images/s ({rate.min:.0f} to {rate.max:.0f})")
    else:
        print(f"{options.precision}, {options.threads} threads, {options.saves} saves")
        figures = found = measure([BARE, OURS, *[LIGHTNING] * bool(find_spec("lightning"))], options)
        report(found)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
