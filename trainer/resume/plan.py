"""resume=DIR|FILE|URL|latest and reproduce=DIR: what such a command line means.

Hydra composes a configuration from a command line, so a resumed run is given one: the overrides of the run's
latest attempt, then the new ones, in the same directory; a reproduction has them in a new one. Nothing of the
earlier record is overwritten, and nothing that a run directory holds is executed.
"""

import itertools
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peakpoint.base import bounded, given
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.terminal import say_error
from peakpoint.checkpointing.remote.urls import is_url
from peakpoint.checkpointing.storage.foreign import described
from peakpoint.trainer.config import recorded
from peakpoint.trainer.config.hydra_overrides import (
    joined,
    keys,
    outliving,
    override,
    quote,
    split,
    unquote,
)
from peakpoint.trainer.reports.run_record import RUN, read_run
from peakpoint.trainer.resume import refusals
from peakpoint.trainer.sweep.record import NAME as SWEEP
from peakpoint.trainer.sweep.record import read as read_sweep

LATEST = "latest"
"""The value of resume= that stands for the run or sweep under outputs/ that was started last."""


@dataclass(frozen=True)
class Plan:
    """The command line for Hydra, and the run and checkpoint that it resumes.

    `run` is the directory of the resumed run, or None for a fresh start; `file` the checkpoint given by name,
    or None for the newest that verifies; `typed` the keys on this command line; `attempt` the recorded one
    whose overrides are used; `root_recorded`: only the record names the folder of the data. `reproduces` is
    the directory of the run that a fresh start repeats.
    """

    argv: list[str]
    run: Path | None = None
    file: Path | None = None
    typed: tuple[str, ...] = ()
    attempt: dict[str, Any] | None = None
    root_recorded: bool = False
    reproduces: Path | None = None


def make_plan(argv: list[str]) -> Plan:
    """Expand resume= or reproduce= in a command line (without the program's name). Raises UserError."""
    argv = joined(argv)
    values, repeated = _values(argv, "resume"), _values(argv, "reproduce")
    if not values and not repeated:
        return Plan(argv, typed=keys(argv))
    value = unquote((values or repeated)[-1])
    if value == LATEST:
        value = str(_latest("resume" if values else "reproduce"))
    if values and not repeated and (folder := _sweep(value)) is not None:
        return _plan_of_sweep(argv, folder)
    if any(a in ("-m", "--multirun", "hydra.mode=MULTIRUN") for a in argv):
        what = "resume= goes on with" if values else "reproduce= repeats"
        raise UserError(f"{what} one run: leave out --multirun.")
    if values and repeated:
        raise UserError("resume= goes on with a run and reproduce= repeats one: leave out one of them.")
    if repeated:
        return _repetition(argv, value)
    if is_url(value):
        from peakpoint.trainer.resume.fetch import fetched  # late: fsspec costs a tenth of a second

        argv = fetched(argv, value)
        value = unquote(_values(argv, "resume")[-1])
    run, file = locate(value)
    attempt = last_attempt(run)
    if file is not None:
        refusals.check_file(
            run / "checkpoints", file, f"{shlex.quote(override(run))} goes on from its newest checkpoint"
        )
    typed = keys(argv)
    argv, saved = _with_record(argv, run, attempt)
    argv.append(f"resume={quote(str(file or run))}")
    if "hydra.run.dir" not in typed:
        argv.append(f"hydra.run.dir={quote(str(run))}")
    return Plan(argv, run, file, typed, attempt, recorded.data_root(saved) is not None)


def _values(argv: list[str], key: str) -> list[str]:
    """Return the values of a key on a command line, without one that is null."""
    found = [value for name, value in map(split, argv) if name == key]
    return found if found and unquote(found[-1]) not in ("", "null") else []


def _repetition(argv: list[str], value: str) -> Plan:
    """Return the plan of a fresh run by the record of another. Raises UserError."""
    if is_url(value):
        raise UserError(f"reproduce={value} is a URL: pull the run first, with peakpoint pull.")
    run, file = locate(value, "reproduce")
    if file is not None:
        raise UserError(f"reproduce= repeats a run from its start: name its directory, {run}.")
    attempt = last_attempt(run)
    typed = keys(argv)
    argv, saved = _with_record(argv, run, attempt)
    argv.append(f"reproduce={quote(str(run))}")
    known = recorded.data_root(saved) is not None
    return Plan(argv, typed=typed, attempt=attempt, root_recorded=known, reproduces=run)


def _with_record(argv: list[str], run: Path, attempt: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return a command line with the recorded overrides before what is typed, and these overrides."""
    overrides = [a for a in argv if split(a)[0] is not None]
    saved = outliving(recorded.overrides(attempt), overrides, attempt.get("choices", {}))
    saved = recorded.taken(saved, run / RUN)
    first = next(i for i, a in enumerate(argv) if split(a)[0] is not None)
    rest = [a for a in argv[first:] if split(a)[0] not in ("resume", "reproduce")]
    return [*argv[:first], *saved, *rest], saved


def _sweep(value: str) -> Path | None:
    """Return the directory of a sweep that a value names, None where it names something else."""
    if is_url(value):
        return None
    folder = given.path(value).resolve()
    names = [name for name in (SWEEP, RUN) if os.path.lexists(folder / name)]
    return folder if names == [SWEEP] else None


def _plan_of_sweep(argv: list[str], folder: Path) -> Plan:
    """Return the command line that goes on with a sweep: its recorded overrides, then the new ones.

    What the record says of a launcher is not used: its settings may be commands.
    """
    typed = [a for a in argv if split(a)[0] not in (None, "resume")]
    flags = [a for a in argv if split(a)[0] is None and a not in ("-m", "--multirun")]
    saved = outliving(read_sweep(folder)["overrides"], typed, {})
    recorded.taken([each for word in saved for each in recorded.values_of(word)], folder / SWEEP)
    return Plan(
        ["--multirun", *flags, *saved, *typed, f"hydra.sweep.dir={quote(str(folder))}"], typed=keys(argv)
    )


def _latest(key: str) -> Path:
    """Return the run under outputs/ whose latest attempt began last; for `resume`, of a job its sweep.

    Raises UserError when there is none.
    """
    started: dict[str, Path] = {}
    patterns = itertools.product(("*", "*/*", "sweeps/*/*"), (RUN, SWEEP))
    for file in itertools.chain(*(Path("outputs").glob(f"{where}/{name}") for where, name in patterns)):
        try:
            if file.name == RUN:
                started[last_attempt(file.parent).get("started", "")] = file.parent
            elif key == "resume":  # its first job may not have begun
                started[read_sweep(file.parent)["created"]] = file.parent
        except UserError as error:  # one bad file does not hide the others
            say_error(f"passed over: {error}")
    if not started:
        raise UserError(
            f"{key}={LATEST} finds no run under outputs/ of this directory: name a run directory."
        )
    found = started[max(started)].resolve()
    return found.parent if key == "resume" and os.path.lexists(found.parent / SWEEP) else found


def locate(value: str, key: str = "resume") -> tuple[Path, Path | None]:
    """Return the run directory and the checkpoint, if any, that a value of `key` names. Raises UserError."""
    typed = given.path(value)
    path = typed.resolve()
    if path.is_dir():
        if os.path.lexists(path / RUN):  # its content is checked where it is read
            return path, None
        above = _run_above(path)
        what = f", but lies in one: {shlex.quote(override(above, key))}." if above else f".{described(path)}"
        raise UserError(f"{key}={value}: the directory has no {RUN}, so it is not that of a run{what}")
    if not path.is_file():
        raise UserError(
            f"{key}={value}: there is no such file or directory. A run's directory is under outputs/."
        )
    if through := _run_above(typed.absolute()):
        _refuse_links(through)
    if above := _run_above(path):
        return above, path
    raise UserError(
        f"{key}={value}: the file is not in the directory of a run (no {RUN} above it).{described(path)}"
    )


def _run_above(path: Path) -> Path | None:
    """Return the innermost directory of a run that a path lies in."""
    return next((folder for folder in path.parents if os.path.lexists(folder / RUN)), None)


def _refuse_links(run: Path) -> None:
    try:
        bounded.refuse_links(run)
    except CheckpointError as error:
        raise UserError(str(error)) from None


def last_attempt(run: Path) -> dict[str, Any]:
    """Return the latest attempt that a run recorded.

    Raises UserError when its run.json is of something else, or a link in the run leads out of it.
    """
    _refuse_links(run)
    attempt: dict[str, Any] = read_run(run)["attempts"][-1]
    return attempt
