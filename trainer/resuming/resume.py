"""resume=DIR|FILE|URL|latest: what a resumed command line means.

Hydra composes a configuration from a command line, so a resumed run is given one: the overrides of the run's
latest attempt, then the new ones, in the same directory. Nothing of the earlier record is overwritten, and
nothing that a run directory holds is executed.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from peakpoint.base import given, links
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.terminal import say_error
from peakpoint.checkpointing.remote.urls import is_url
from peakpoint.checkpointing.storage.foreign import described
from peakpoint.trainer.config import recorded
from peakpoint.trainer.config.hydra_overrides import (
    OWN,
    _joined,
    flat,
    keys,
    outliving,
    override,
    quote,
    split,
    under,
    unquote,
)
from peakpoint.trainer.reports.run_record import HYDRA, RUN, read_run
from peakpoint.trainer.resuming import named

FROZEN = ("model", "data", "seed", "batch_size", "optimizer.name")
"""What a resumed run may not change: it would no longer be the same run."""
FREE = ("data.root",)
"""What may change below a frozen key."""
OWNED = ("checkpoints", HYDRA)
"""The folders of a run in which nothing else may be written."""


@dataclass(frozen=True)
class Plan:
    """A command line to give to Hydra, and what it goes on from.

    `run` is the directory of the run that is resumed, or None for a fresh start; `file` a checkpoint that was
    named, or None for the newest good one; `typed` the keys named on this command line; `attempt` the one
    whose overrides were taken; `root_recorded`: its record alone names the folder of the data.
    """

    argv: list[str]
    run: Path | None = None
    file: Path | None = None
    typed: tuple[str, ...] = ()
    attempt: dict[str, Any] | None = None
    root_recorded: bool = False


def plan(argv: list[str]) -> Plan:
    """Expand resume= in a command line (without the program's name). Raises UserError."""
    argv = _joined(argv)
    values = [value for key, value in map(split, argv) if key == "resume"]
    if not values or unquote(values[-1]) in ("", "null"):
        return Plan(argv, typed=keys(argv))
    if any(a in ("-m", "--multirun", "hydra.mode=MULTIRUN") for a in argv):
        raise UserError("resume= goes on with one run: leave out --multirun.")
    if is_url(unquote(values[-1])):
        from peakpoint.trainer.resuming.fetch import fetched  # late: fsspec costs a tenth of a second

        argv = fetched(argv, unquote(values[-1]))
        values = [value for key, value in map(split, argv) if key == "resume"]
    run, file = locate(unquote(values[-1]))
    attempt = last_attempt(run)
    if file is not None:
        named.check(
            run / "checkpoints", file, f"{shlex.quote(override(run))} goes on from its newest checkpoint"
        )
    typed = keys(argv)
    given = [a for a in argv if split(a)[0] is not None]
    saved = outliving(attempt["overrides"], given, attempt.get("choices", {}))
    saved = recorded.taken(saved, run / RUN)
    first = next(i for i, a in enumerate(argv) if split(a)[0] is not None)
    rest = [a for a in argv[first:] if split(a)[0] != "resume"]
    source = str(file or run)
    argv = [*argv[:first], *saved, *rest, f"resume={quote(source)}"]
    if "hydra.run.dir" not in typed:
        argv.append(f"hydra.run.dir={quote(str(run))}")
    return Plan(argv, run, file, typed, attempt, recorded.data_root(saved) is not None)


def refuse_taken(directory: Path) -> None:
    """Raise UserError when a fresh run would be written over another, or among what belongs to one."""
    folders = (directory, *directory.parents)
    holder = next((folder for folder in folders if os.path.lexists(folder / RUN)), None)
    if holder == directory and not (directory / RUN).is_file():
        raise UserError(f"{directory / RUN} is not the record of a run: choose another directory.")
    if holder == directory:
        raise UserError(
            f"{directory} holds a run already: go on with {shlex.quote(override(directory))}, or choose "
            "another directory."
        )
    if holder and directory.relative_to(holder).parts[0] in OWNED:
        raise UserError(f"{directory} belongs to the run in {holder}: choose another directory.")


def locate(value: str) -> tuple[Path, Path | None]:
    """The run directory, and the checkpoint when one is named. Raises UserError."""
    if value == "latest":
        runs = [
            p.parent for p in (*Path("outputs").glob(f"*/{RUN}"), *Path("outputs").glob(f"sweeps/*/*/{RUN}"))
        ]
        started: dict[str, Path] = {}
        for run in runs:
            try:
                started[last_attempt(run).get("started", "")] = run
            except UserError as error:  # one bad file does not hide the others
                say_error(f"passed over: {error}")
        if not started:
            raise UserError(
                "resume=latest finds no run under outputs/ of this directory: name a run directory."
            )
        return started[max(started)].resolve(), None
    typed = given.path(value)
    path = typed.resolve()
    if path.is_dir():
        if os.path.lexists(path / RUN):  # what is no record is told by who reads it
            return path, None
        above = _run_above(path)
        what = f", but lies in one: {shlex.quote(override(above))}." if above else f".{described(path)}"
        raise UserError(f"resume={value}: the directory has no {RUN}, so it is not that of a run{what}")
    if not path.is_file():
        raise UserError(
            f"resume={value}: there is no such file or directory. A run's directory is under outputs/."
        )
    if through := _run_above(typed.absolute()):
        _refuse_links(through)
    if above := _run_above(path):
        return above, path
    raise UserError(
        f"resume={value}: the file is not in the directory of a run (no {RUN} above it).{described(path)}"
    )


def _run_above(path: Path) -> Path | None:
    """The innermost directory of a run that a path lies in."""
    return next((folder for folder in path.parents if os.path.lexists(folder / RUN)), None)


def _refuse_links(run: Path) -> None:
    try:
        links.refuse(run)
    except CheckpointError as error:
        raise UserError(str(error)) from None


def last_attempt(run: Path) -> dict[str, Any]:
    """The latest attempt that a run recorded.

    Raises UserError when its run.json is of something else, or a link in the run leads out of it.
    """
    _refuse_links(run)
    attempt: dict[str, Any] = read_run(run)["attempts"][-1]
    return attempt


def check_changes(cfg: DictConfig, saved: DictConfig, typed: tuple[str, ...]) -> list[str]:
    """Compare the composed configuration with the saved one; returns what the command line changed.

    Raises UserError when something changed that may not, or that nobody asked for: the files in conf/ may
    have changed since.
    """
    old, new = dict(flat(saved)), dict(flat(cfg))
    wanted = asked(cfg, saved, typed)
    changed = _changed(cfg, saved)
    drift = [key for key in changed if key not in wanted]
    if drift and not cfg.accept_drift:
        key = drift[0]
        raise UserError(
            f"{key} was {old.get(key)} and is {new.get(key)} now, and the command does not name it: conf/ "
            f"has changed since. Add {key}={old.get(key)} to keep it, or accept_drift=true."
        )
    lines = []
    for key in changed:
        gone = _gone(key, new)
        lines.append(f"{gone}: removed" if gone else f"{key}: {old.get(key)} -> {new.get(key)}")
    return list(dict.fromkeys(lines))


def _gone(key: str, new: Mapping[str, Any]) -> str | None:
    """What `key` went with: the first node above it that the new configuration lacks."""
    names = key.split(".")
    above = (".".join(names[:count]) for count in range(1, len(names)))
    return next((node for node in above if not any(under(left, (node,)) for left in new)), None)


def asked(cfg: DictConfig, saved: DictConfig, typed: Sequence[str]) -> list[str]:
    """The keys that a command line changed. Raises UserError when something changed that may not."""
    old, new = dict(flat(saved)), dict(flat(cfg))
    changed = _changed(cfg, saved)
    for key in sorted(changed, key=lambda key: not key.endswith(".name")):
        if under(key, FROZEN) and not under(key, FREE):
            raise UserError(
                f"{key} was {old.get(key)} in this run and is {new.get(key)} now: a resumed run keeps its "
                "model, data, seed, batch size and optimizer. Start a new run instead."
            )
    # A group or an experiment that was named may change anything.
    free = bool({"experiment", "optimizer"} & set(typed))
    return [key for key in changed if free or under(key, tuple(typed))]


def _changed(cfg: DictConfig, saved: DictConfig) -> list[str]:
    """The keys whose values differ, less the settings that only one of the two versions of Peakpoint has."""
    old, new = dict(flat(saved)), dict(flat(cfg))
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return [key for key in changed if not under(key, OWN) and not _of_one_version(key, cfg, saved)]


def _of_one_version(key: str, cfg: DictConfig, saved: DictConfig) -> bool:
    """Whether a key is a setting that the other configuration cannot have: one of its typed node lacks it."""
    new: Any = cfg
    old: Any = saved
    for name in key.split("."):
        if not isinstance(new, DictConfig) or not isinstance(old, DictConfig):
            return False
        if (name in new) != (name in old):
            return is_dataclass(OmegaConf.get_type(new))
        new, old = new._get_node(name), old._get_node(name)
    return False
