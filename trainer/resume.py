"""resume=DIR|FILE|URL|latest: what a resumed command line means.

Hydra composes a configuration from a command line, so a resumed run is given one: the overrides of the run's
latest attempt, then the new ones, in the same directory. Nothing of the earlier record is overwritten, and
nothing that a run directory holds is executed.
"""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from checkpointing import given, links
from checkpointing.errors import CheckpointError
from checkpointing.foreign import described
from checkpointing.terminal import say_error
from checkpointing.urls import is_url
from trainer import named, recorded
from trainer.errors import UserError
from trainer.record import HYDRA, RUN, flat, read_run

FROZEN = ("model", "data", "seed", "batch_size", "optimizer.name")
"""What a resumed run may not change: it would no longer be the same run."""
FREE = ("data.root",)
"""What may change below a frozen key."""
OWN = ("resume", "accept_drift")
OWNED = ("checkpoints", HYDRA)
"""The folders of a run in which nothing else may be written."""
PLACES = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
"""Options of Hydra with a value."""


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
        from trainer.fetch import fetched

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


def _joined(argv: list[str]) -> list[str]:
    """Hydra's options that say where its configuration lies as one argument each: a path may have a `=`."""
    rest, found = list(argv), []
    while rest:
        word = rest.pop(0)
        found.append(f"{word}={rest.pop(0)}" if word in PLACES and rest else word)
    return found


def keys(overrides: Iterable[str]) -> tuple[str, ...]:
    """The keys that overrides name; other arguments are passed over."""
    return tuple(key for override in overrides if (key := split(override)[0]) is not None)


def outliving(overrides: Sequence[Any], typed: Sequence[str], choices: Mapping[str, Any]) -> list[Any]:
    """The recorded overrides that a command line leaves in force.

    A key that is typed again replaces the recorded one. A group that is chosen anew takes with it what was
    set below the earlier choice, whose keys the new one may lack; `choices` are those of the attempt, none in
    an older record.
    """
    kept = [o for o in overrides if split(o)[0] not in (*keys(typed), *OWN)]
    chosen: dict[Any, Any] = {**dict(map(split, overrides)), **choices}
    for override in typed:
        group, choice = split(override)
        if group is None or "." in group or override.startswith("~"):
            continue
        members = re.findall(r"[\w-]+", choice) if choice.startswith("[") else None
        if members is None and chosen.get(group) != unquote(choice):
            members = []
        if members is not None:
            kept = [o for o in kept if not under(_dotted(o), (group,)) or _belongs(o, group, members)]
    return kept


def _dotted(override: str) -> str:
    return str(split(override)[0]).replace("/", ".")


def _belongs(override: str, group: str, members: Sequence[str]) -> bool:
    """Whether an override sets something of one of the `members` chosen of a group."""
    name = _dotted(override).removeprefix(group.replace("/", ".")).lstrip(".").partition(".")[0]
    return name in members and not override.startswith("~")


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


def split(argument: str) -> tuple[str | None, str]:
    """An argument as (key, value) of an override, without `+` and `~`; (None, ...) when it is not one."""
    match = re.match(r"^(?:\+\+?|~)?([\w./@:-]+?)(?:=(.*))?$", argument, re.DOTALL)
    if match is None or argument.startswith("-") or (match[2] is None and not argument.startswith("~")):
        return None, argument
    return match[1], match[2] or ""


def quote(value: str) -> str:
    """A value that Hydra's override grammar takes literally."""
    # Hydra reads a backslash as one, except before a quote and at the end.
    return '"' + re.sub(r'(\\*)("|\Z)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), value) + '"'


def override(run: Path) -> str:
    """resume= of a path, as Hydra reads it; a shell needs quotes of its own around it."""
    plain = re.fullmatch(r"[\w./:@%+-]+", str(run))  # Hydra's grammar takes these characters without quotes
    return f"resume={run if plain else quote(str(run))}"


def unquote(value: str) -> str:
    """A value without the quotes that protected it from Hydra's grammar."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return re.sub(rf"(\\+)({value[0]}|\Z)", lambda m: m[1][: len(m[1]) // 2] + m[2], value[1:-1])
    return value


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


def under(key: str, prefixes: tuple[str, ...]) -> bool:
    """Whether `key` is one of `prefixes` or lies below one; `a/b` and `a.b` are the same."""
    return any(key == p or key.startswith(f"{p}.") for p in (q.replace("/", ".") for q in prefixes))
