"""Kill the real trainer at random and resume it, many times; then compare with a run left alone.

    python -m benchmarks.soak --kills 200

Each life is ended by SIGKILL: most of them some checkpoints after they have resumed, at a random moment, and
one in five at a random moment while it starts. A checkpoint is saved at every step. Counted as lost: a kill
after which no checkpoint verifies, or one that had been seen on disk is not there or not reached, or more
than two steps are to be repeated (the current one and the one that was being written).
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks._harness import ROOT, machine
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing, locate

STEPS_PER_EPOCH = 8
SETTINGS = (
    "model=lenet5", "model.dropout=0.3", "data=synthetic", "data.train_size=144", "data.test_size=40",
    "data.num_classes=4", "data.native_size=12", "data.val_fraction=0.1", "batch_size=16", "log_every=1",
    "pruning.frequency=2", "logger=[console]", "report=false", "threads=1", "checkpoint.interval_steps=1",
    "checkpoint/policy=[interval,best,top_k,sparsity]",
)  # fmt: skip
REPEATED = 2
NAME = re.compile(r"checkpoint_epoch_\d+_step_(\d+)(_\d+)?\.json")


@dataclass
class Result:
    """What the soak found; `repeated` is the largest number of steps that a resume had to do again."""

    kills: int = 0
    kills_while_starting: int = 0
    losses: int = 0
    damaged: int = 0
    repeated: int = 0
    strays: int = 0
    weights_equal: bool = False
    steps: int = 0
    seconds: float = 0.0


def start(run: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the trainer as a process of its own; its output goes to a file beside the run."""
    with run.with_suffix(".out").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=run.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=out,
            stderr=out,
        )


def newest_step(run: Path) -> int:
    """Return the step of the newest training checkpoint by the names on disk; 0 when there is none."""
    folder = run / "checkpoints" / "training"
    paths = folder.iterdir() if folder.exists() else []
    return max((int(found[1]) for path in paths if (found := NAME.fullmatch(path.name))), default=0)


def last_trained(run: Path) -> int:
    """Return the last step that the run has logged."""
    steps = [0]
    path = run / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # torn by the kill
            continue
        if row["kind"] == "train":
            steps.append(row["step"])
    return max(steps)


def live(process: subprocess.Popen[bytes], run: Path, dice: random.Random, checkpoints: int) -> int | None:
    """Kill it after a random number of new checkpoints; the step seen last, None if it ended by itself."""
    seen = before = newest_step(run)
    until = before + 1 + dice.randrange(checkpoints)
    while process.poll() is None:
        seen = newest_step(run)
        if seen >= until:
            time.sleep(dice.uniform(0, 0.05))
            seen = newest_step(run)
            process.kill()
            return seen if process.wait() < 0 else None
        time.sleep(0.005)
    return None


def die_young(process: subprocess.Popen[bytes], run: Path, dice: random.Random, seconds: float) -> int | None:
    """Kill it within its first seconds; the step seen last, None if it ended by itself."""
    time.sleep(dice.uniform(0, seconds))
    seen = newest_step(run)
    process.kill()
    return seen if process.wait() < 0 else None


def judge(run: Path, seen: int, result: Result) -> None:
    """Look at what a kill has left, as the next start will."""
    trained = last_trained(run)
    found = locate.newest_verified(run / "checkpoints")
    result.damaged += len(found.skipped)
    step = found.manifest.global_step if found.manifest else -1
    repeated = trained - step
    result.repeated = max(result.repeated, repeated)
    if found.manifest is None or step < seen or repeated > REPEATED:
        result.losses += 1
        print(f"LOST: seen {seen}, trained {trained}, found {step}, skipped {found.skipped}", flush=True)


def soak(folder: Path, kills: int, checkpoints: int, dice: random.Random) -> Result:
    """Kill and resume until `kills` are reached, let the run end, and compare."""
    begun = time.perf_counter()
    epochs = 1 + kills * checkpoints // STEPS_PER_EPOCH
    settings = (*SETTINGS, f"epochs={epochs}")
    whole, run = folder / "whole", folder / "killed"
    if start(whole, *settings, f"hydra.run.dir={whole}").wait():
        raise SystemExit(f"the uninterrupted run failed: {whole.with_suffix('.out').read_text()}")
    result = Result(steps=epochs * STEPS_PER_EPOCH)
    while result.kills < kills:
        first = newest_step(run) == 0
        process = start(
            run, *(settings if first else ()), f"hydra.run.dir={run}" if first else f"resume={run}"
        )
        young = not first and dice.random() < 0.2
        seen = die_young(process, run, dice, 4.0) if young else live(process, run, dice, checkpoints)
        if seen is None:
            break
        result.kills += 1
        result.kills_while_starting += young
        judge(run, seen, result)
        if result.kills % 10 == 0:
            print(f"{result.kills} kills, at step {seen} of {result.steps}, {result.losses} lost", flush=True)
    if start(run, f"resume={run}").wait():
        raise SystemExit(f"the last resume failed: {run.with_suffix('.out').read_text()[-2000:]}")
    result.strays = len(strays(whole, run))
    result.weights_equal = equal(weights(whole), weights(run))
    result.seconds = round(time.perf_counter() - begun, 1)
    return result


def strays(whole: Path, run: Path) -> list[str]:
    """Return the files in the killed run's folder that are neither checkpoints nor in the other run."""

    def names(root: Path) -> set[str]:
        return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and ".hydra" not in str(p)}

    kept = {m.file for m in listing.manifests(run / "checkpoints")}
    mine = {f"checkpoints/{f}" for f in kept} | {f"checkpoints/{f.removesuffix('.pt')}.json" for f in kept}
    left = {"metrics.superseded.jsonl", ".lock"}  # the next owner keeps a lock file that a kill left
    found = sorted(names(run) - names(whole) - mine - left)
    for name in found:
        print(f"STRAY: {name}", flush=True)
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the newest checkpoint that verifies."""
    manifest = locate.newest_verified(run / "checkpoints").manifest
    if manifest is None:
        raise SystemExit(f"{run} has no checkpoint")
    found: dict[str, torch.Tensor] = serialize.load(run / "checkpoints" / manifest.file)["model_state_dict"]
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether the weights are equal bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one
    )


def main() -> int:
    """Soak and print a table; exit code 1 when anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--checkpoints", type=int, default=20, help="saves before a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="where the two runs go, and stay; else a temporary folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.dir or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        result = soak(folder, args.kills, args.checkpoints, random.Random(args.seed))
    print(machine())
    for name, value in asdict(result).items():
        print(f"{name.replace('_', ' '):22} {value}")
    good = result.weights_equal and not result.losses and not result.strays and result.kills >= args.kills
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
