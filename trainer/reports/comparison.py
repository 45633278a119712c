"""Two runs compared: what they were run with, and the first row of metrics.jsonl that differs. No torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peakpoint.base import bounded
from peakpoint.base.digests import SHA256, of_bytes
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing.state.differences import differ, flat
from peakpoint.trainer.reports.run_record import METRICS

KINDS = {
    "train": ("loss", "lr", "skipped"),
    "eval": ("epoch", "metrics", "sparsity", "sparsity_of_all", "mask_version", "digests"),
    "test": ("epoch", "metrics", "sparsity", "samples"),
}
"""The kinds of rows in their order within a step, each with the values that training alone decides."""
DECIDES = (
    *("git_commit", "git_diff", "data", "packages.torch", "packages.peakpoint"),
    *(f"hardware.{name}" for name in ("machine", "cpu", "cpu_capability", "cpu_threads", "gpus", "cuda")),
)
"""Circumstances that decide the last bit of a result; the others hardly do."""
LONGEST = 160
"""Characters of a value in a sentence."""


@dataclass(frozen=True)
class Circumstance:
    """A fact that two runs do not share; `decides` whether their results can be expected to be equal."""

    name: str
    before: str
    now: str
    decides: bool

    def __str__(self) -> str:
        return f"{self.name} was {self.before} and is {self.now}"


@dataclass(frozen=True)
class Parting:
    """The first value that differs: the step of its row, its name, and the values in short."""

    step: int
    epoch: int | None
    what: str
    before: str
    now: str

    def __str__(self) -> str:
        where = f"step {self.step}" + (f" (epoch {self.epoch})" if self.epoch is not None else "")
        return f"{where}: {self.what} was {self.before} and is {self.now}"


@dataclass(frozen=True)
class Comparison:
    """What two runs wrote: `rows` counts the equal ones by kind, `digests` those of them with digests.

    `first` is None where every row that both should have is equal; `steps` are the last of each run.
    """

    rows: Mapping[str, int]
    digests: int
    first: Parting | None
    steps: tuple[int, int]


def circumstances(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the code, packages, data and machine in a record by name, a diff by its digest."""
    found = {name: record.get(name) for name in ("git_commit", "git_diff", "python")}
    if found["git_diff"] is not None:
        text = str(found["git_diff"])
        found["git_diff"] = of_bytes(text.encode(errors="replace"), SHA256) if text else "no change"
    nested = {name: record.get(name) for name in ("packages", "hardware", "data")}
    return {**found, **flat({name: value for name, value in nested.items() if isinstance(value, Mapping)})}


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Circumstance]:
    """Return the circumstances that two records both have and that differ, those that decide first."""
    old, new = circumstances(before), circumstances(now)
    both = [{name: each[name] for name in old if name in new} for each in (old, new)]
    known = differ(*both)
    found = [
        Circumstance(name, short(a), short(b), any(name == d or name.startswith(f"{d}.") for d in DECIDES))
        for name, (a, b) in known.items()
    ]
    return sorted(found, key=lambda each: not each.decides)


def short(value: Any) -> str:
    """Return a value in a few words."""
    text = "unknown" if value is None else str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def compare(before: Path, now: Path) -> Comparison:
    """Compare the rows of two runs in the order of their steps, as far as both have come.

    The rows that the shorter one has because it ended, of tests and of its last step, have no counterpart.
    Raises UserError for a file that cannot be read. Rows of earlier versions, without digests, are compared
    by the values that both have.
    """
    old, new = rows(before), rows(now)
    equal, kinds = dict.fromkeys(KINDS, 0), [*KINDS]
    steps = (max((key[0] for key in old), default=0), max((key[0] for key in new), default=0))
    last = min(steps)
    digests = 0
    for step, order, which in sorted(key for key in {*old, *new} if key[0] <= last):
        kind, key = kinds[order], (step, order, which)
        of_the_end = kind == "test" or step == last
        if of_the_end and last < max(steps) and not (key in old and key in new):
            continue
        if first := _parting(step, which or kind, KINDS[kind], old.get(key), new.get(key)):
            return Comparison(equal, digests, first, steps)
        equal[kind] += 1
        digests += all("digests" in each[key] for each in (old, new))
    return Comparison(equal, digests, None, steps)


def _parting(
    step: int, what: str, names: Iterable[str], a: dict[str, Any] | None, b: dict[str, Any] | None
) -> Parting | None:
    """Return the first value that differs of a row that two runs have, None when it is equal."""
    epoch = (a or b or {}).get("epoch")
    epoch = epoch if type(epoch) is int else None
    if a is None or b is None:
        before, now = ("missing" if each is None else "recorded" for each in (a, b))
        return Parting(step, epoch, f"{what} row", before, now)
    left, right = ({name: each[name] for name in names if name in a and name in b} for each in (a, b))
    different = differ(flat(left), flat(right))
    if not different:
        return None
    name = min(different, key=_cause)
    before, now = map(short, different[name])
    return Parting(step, epoch, f"{what} {name}", before, now)


def _cause(name: str) -> tuple[bool, bool, str]:
    """Return the order of values within a row: batches before weights before what follows from them."""
    return name != "digests.batches", name != "digests.weights", name


def rows(run: Path) -> dict[tuple[int, int, str], dict[str, Any]]:
    """Return the rows of metrics.jsonl to compare by step, kind and, of a test, which weights.

    A row that a resumed run wrote again replaces the earlier one. Raises UserError.
    """
    found = {}
    kinds = [*KINDS]
    try:
        for line in bounded.lines(run / METRICS):
            try:
                row = bounded.json_value(line)
            except ValueError:  # torn by a kill
                continue
            kind = row.get("kind") if isinstance(row, dict) else None
            if kind in kinds and type(row.get("step")) is int:
                which = f"test of the {row.get('which')} weights:" if kind == "test" else ""
                found[row["step"], kinds.index(kind), short(which)] = row
    except CheckpointError as error:
        raise UserError(str(error)) from None
    return found
