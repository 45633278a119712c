"""prove-resume: kill a run, resume it, and compare every step with an uninterrupted run.

Three real processes of train.py in a temporary folder: one uninterrupted, one killed with SIGKILL, one that
resumes it. Every step leaves a checkpoint, so that the first leaf of the first step that differs is found.
The batches are compared as well (see witness.py).
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakpoint.base import registry
from peakpoint.base.bounded import json_value, lines
from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage import foreign, listing, locate
from peakpoint.commands.arguments import Argument, number, takes
from peakpoint.commands.common import print_json
from peakpoint.trainer.config import check, choices

if TYPE_CHECKING:
    from torch import Tensor

WITNESS = "peakpoint.commands.proof.witness"
OWN = ("resume", "accept_drift", "hydra.run.dir", "hydra.output_subdir")
IGNORED = ("timestamp", "git_commit")
"""Facts of a save that may differ for the same state: a commit may be made, or git not answer, meanwhile."""
FIRST = ("epoch", "global_step", "progress", "rng_state", "scheduler_state_dict", "optimizer_state_dict")
"""Causes are compared before their effects: any part that is not restored changes the weights."""


@dataclass(frozen=True)
class Difference:
    """The first difference: its step, its path, and the two values in short."""

    step: int
    leaf: str
    uninterrupted: str
    resumed: str


@takes(
    Argument("overrides", nargs="+", metavar="RUN|KEY=VALUE", help="a run, or as for train"),
    Argument(
        "--steps", type=number(int, 1, 10**9), default=5, metavar="K", help="steps before the kill, and after"
    ),
)
def prove_resume(options: argparse.Namespace) -> int:
    """Run, kill, resume, compare; 1 when anything differs."""
    saved, own, plugins = _asked(options.overrides)
    settings = [*saved, *own, *_settings([*saved, *own], options.steps)]
    check.composed([*settings, f"plugins=[{','.join(plugins)}]"])  # refused here, before a run starts
    with tempfile.TemporaryDirectory(prefix="prove-resume-") as name:
        proof = _proof(Path(name), saved, settings, plugins, options.steps)
        first = proof.first_difference()
    steps = len(proof.uninterrupted)
    facts = {"steps": steps, "killed_after": options.steps, "resumed_from": proof.resumed_from}
    if options.json:
        print_json({"equal": first is None, **facts, "values": proof.values, "first": first and vars(first)})
        return int(first is not None)
    console = Console()
    if first is None:
        console.say(
            f"equal to the last bit: {steps} steps, their batches and {proof.values} values; "
            f"killed after step {options.steps}, resumed from step {proof.resumed_from}",
        )
        return 0
    console.say(f"differs first at step {first.step}: {first.leaf}")
    console.say(f"  uninterrupted  {first.uninterrupted}")
    console.say(f"  resumed        {first.resumed}")
    if first.step <= proof.resumed_from:
        console.say("That is before the kill: without one the run is not repeatable either.")
    return 1


def _asked(arguments: list[str]) -> tuple[list[str], list[str], list[str]]:
    """Return the overrides of a record, those of the command, and the modules in plugins=.

    The proof chooses no loggers, so theirs are left out. Raises CheckpointError or UserError.
    """
    from peakpoint.trainer.config import commandline, recorded
    from peakpoint.trainer.config.hydra_overrides import keys, split, under
    from peakpoint.trainer.reports import run_record
    from peakpoint.trainer.resume.plan import last_attempt

    def without(overrides: list[str], left_out: Sequence[str]) -> list[str]:
        named = [(override, str(split(override)[0])) for override in overrides]
        return [o for o, key in named if key not in left_out and not under(key, ("logger",))]

    saved: list[str] = []
    folder = Path(arguments[0])
    if split(arguments[0])[0] is None:
        if not (folder / run_record.RUN).exists():
            raise CheckpointError(
                f"{folder} is neither the directory of a run nor an override such as optimizer=adamw."
                f"{foreign.described(folder)}"
            )
        arguments = arguments[1:]
        left_out = [*OWN, *recorded.SENDS, *keys(arguments)]
        overrides = without(recorded.overrides(last_attempt(folder)), left_out)
        saved = recorded.taken(overrides, folder / run_record.RUN)
    choices.register_schemas()
    arguments = commandline.overrides(arguments)
    return saved, without(arguments, [*OWN, "plugins"]), registry.named(arguments)


@dataclass
class Proof:
    """The checkpoints of an uninterrupted and of a resumed run by step, and where their batches are recorded.

    `values` counts the values that were compared.
    """

    folder: Path
    resumed_from: int
    uninterrupted: dict[int, Path]
    resumed: dict[int, Path]
    values: int = 0

    def first_difference(self) -> Difference | None:
        """Compare batch and state of every step, in order; return the first difference or None."""
        expected = self._batches("uninterrupted")
        found = self._batches("killed")[: self.resumed_from] + self._batches("resumed")
        for step in range(1, len(self.uninterrupted) + 1):
            batch, other = (rows[step - 1] if step <= len(rows) else {} for rows in (expected, found))
            if batch != other:
                name = next((key for key in batch if batch[key] != other.get(key)), "")
                return Difference(step, f"batch/{name}", str(batch.get(name)), str(other.get(name)))
            if step not in self.resumed:
                return Difference(step, "checkpoint", "saved", "missing")
            count, different = compare(self.uninterrupted[step], self.resumed[step])
            self.values += count
            if different:
                return Difference(step, *different)
        return None

    def _batches(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        return [json_value(text) for text in lines(path)] if path.exists() else []


def _proof(folder: Path, saved: list[str], settings: list[str], plugins: list[str], kill_after: int) -> Proof:
    """Train the three runs in `folder`. Raises CheckpointError when one of them ends in another way."""
    from peakpoint.trainer.config import recorded

    plugin = f"plugins=[{','.join([*plugins, WITNESS])}]"
    variables = {"PEAKPOINT_WITNESS_ROOT": recorded.data_root(saved) or ""}

    def train(name: str, *arguments: str, **more: str) -> None:
        Console(stderr=True).say(f"{name} run ...")
        batches = {"PEAKPOINT_WITNESS_BATCHES": str(folder / f"{name}.jsonl")}
        done = subprocess.run(
            [sys.executable, "-m", "peakpoint", "train", *arguments, plugin],
            env={**os.environ, **variables, **batches, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != (-signal.SIGKILL if more else 0):
            last = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            ended = f"ended with exit code {done.returncode}: {last}"
            why = f"failed: {last.removeprefix('error: ')}" if last.startswith("error: ") else ended
            raise CheckpointError(f"The {name} run {why}")

    train("uninterrupted", *settings, f"hydra.run.dir={folder / 'uninterrupted'}")
    uninterrupted = _steps(folder / "uninterrupted")
    steps = max(uninterrupted, default=0)
    if set(uninterrupted) != set(range(1, steps + 1)):
        raise CheckpointError("The run did not save at every step: let checkpoint/policy hold interval.")
    if steps <= kill_after:
        raise CheckpointError(f"The run has {steps} steps: use --steps with fewer, to kill it before.")
    killed = folder / "killed"
    train("killed", *settings, f"hydra.run.dir={killed}", PEAKPOINT_WITNESS_KILL_AFTER=str(kill_after))
    found = locate.newest_verified(killed / "checkpoints").manifest
    if found is None:
        raise CheckpointError("The killed run left no checkpoint that verifies.")
    # The user consented to these in the record; nothing is uploaded during the proof.
    again = [*recorded.needs_word(settings), "checkpoint.mirror.url=null"]
    train("resumed", f"resume={killed}", *again)
    return Proof(folder, found.global_step, uninterrupted, _steps(killed))


def _steps(run: Path) -> dict[int, Path]:
    """Return the checkpoint of each step of a run."""
    root = run / "checkpoints"
    return {m.global_step: root / m.file for m in listing.manifests(root)}


def _settings(overrides: list[str], steps: int) -> list[str]:
    """Return overrides for short runs with a checkpoint of every step, durable before the next."""
    from peakpoint.trainer.config.hydra_overrides import split

    chosen = [
        f"max_steps={2 * steps}",
        "checkpoint.interval_steps=1",
        f"checkpoint.keep_last={2 * steps + 2}",
        "checkpoint.background=false",
        "checkpoint.on_error=stop",
        "checkpoint.mirror.url=null",
        "test=false",
        "logger=[]",
        "report=false",
    ]
    if not any(split(o)[0] == "deterministic" for o in overrides):
        chosen.append("deterministic=true")
    return chosen


def compare(a: Path, b: Path) -> tuple[int, tuple[str, str, str] | None]:
    """Return the number of leaves compared, and path and values of the first difference, or None."""
    from peakpoint.checkpointing.state import serialize

    left, right = (dict(_leaves(_ordered(serialize.load(path)))) for path in (a, b))
    for count, path in enumerate(dict.fromkeys([*left, *right]), 1):
        if path not in left or path not in right:
            short = [_short(side[path]) if path in side else "missing" for side in (left, right)]
            return count, (path, short[0], short[1])
        if not _same(left[path], right[path]):
            return count, (path, *_shorts(left[path], right[path]))
    return len(left), None


def _ordered(state: dict[str, Any]) -> dict[str, Any]:
    keys = [*(k for k in FIRST if k in state), *(k for k in state if k not in (*FIRST, *IGNORED))]
    return {key: state[key] for key in keys}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from _leaves(child, f"{path}/{key}" if path else str(key))
    else:
        yield path, value


def _same(a: Any, b: Any) -> bool:
    """Return whether two leaves are equal to the last bit, strides included."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if (a.dtype, a.shape, a.stride()) != (b.dtype, b.shape, b.stride()):
            return False
        return torch.equal(_bytes(a), _bytes(b))
    return type(a) is type(b) and repr(a) == repr(b)


def _bytes(tensor: "Tensor") -> "Tensor":
    """Return the bytes of each element as a row: NaN equals itself, and 0.0 is not -0.0."""
    import torch

    return tensor.contiguous().view(-1, 1).view(torch.uint8)


def _shorts(a: Any, b: Any) -> tuple[str, str]:
    """Return both values as text; for tensors of one shape and dtype, the first element that differs."""
    tensors = hasattr(a, "dtype") and hasattr(b, "dtype")
    if not tensors or (a.dtype, a.shape) != (b.dtype, b.shape):
        return _short(a), _short(b)
    unequal = (_bytes(a) != _bytes(b)).any(1).nonzero()
    if not len(unequal):
        return f"strides {a.stride()}", f"strides {b.stride()}"
    where, share = int(unequal[0]), f"{len(unequal)} of {a.numel()} elements differ"
    first, second = (f"element {where} is {t.flatten()[where].item()!r}" for t in (a, b))
    return f"{first}; {share}", second


def _short(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"a tensor of {value.dtype}, shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
