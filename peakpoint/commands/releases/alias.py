"""alias, rollback and changelog: the history of a folder's releases, and the switch to another one."""

import argparse
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from peakpoint.base.errors import CheckpointError, Undamaged
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage import aliases, listing
from peakpoint.checkpointing.storage.aliases import Change
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.quarantine import whereabouts
from peakpoint.commands.arguments import RUN, Argument, takes
from peakpoint.commands.common import as_json, checkpoint_root, print_json, verdict
from peakpoint.deployment.release import changelog as releases_log


@takes(
    RUN,
    Argument("name", nargs="?", metavar="NAME", help="champion, or challenger_1 and the like"),
    Argument("version", nargs="?", metavar="VERSION", help="the release that it is to name"),
    Argument("--remove", action="store_true", help="let it name no release any more"),
    Argument("--on", metavar="DATE", help="what it named when that local day ended, or at a time"),
    Argument("--reason", default="", metavar="TEXT", help="why, for the journal"),
)
def alias(options: argparse.Namespace) -> int:
    """List the aliases, show the history of one, set or remove it, or print its release on a day."""
    root: Path = checkpoint_root(options.path)
    name, version = options.name, options.version
    if options.remove and (name is None or version is not None or options.on is not None):
        raise CheckpointError("--remove takes the name of an alias, and nothing else but --reason.")
    if options.on is not None and version is not None:
        raise CheckpointError("--on and VERSION exclude each other: give one of the two.")
    if options.reason and version is None and not options.remove:
        raise CheckpointError("--reason is for setting or removing an alias: name the alias and the version.")
    if name is not None:
        aliases.check(name)
    if options.on is not None:
        return _on(root, name, options.on, options.json)
    if version is not None or options.remove:
        return _set(root, name, version, options.reason, options.json)
    return _list(root, options.json) if name is None else _show(root, name, options.json)


def _in_json(change: Change) -> dict[str, Any]:
    """Return a change as plain JSON types, its time in UTC."""
    return {
        "time": change.time.astimezone(UTC).isoformat(timespec="milliseconds"),
        **{key: getattr(change, key) for key in ("alias", "version", "before", "how", "reason")},
    }


def _local(change: Change) -> str:
    return change.time.astimezone().isoformat(sep=" ", timespec="seconds")


def _in_words(change: Change) -> str:
    """Return a change as one line, in local time."""
    why = f": {' '.join(change.reason.split())}" if change.reason else ""
    moved = f"{change.before or 'none'} -> {change.version or 'none'}"
    return f"{_local(change)}  {change.alias}: {moved}, {change.how}{why}"


def _missing(root: Path, version: str | None) -> str | None:
    """Return why an alias cannot be served when its release was deleted by hand. Reads no bytes of it."""
    if version is None:
        return None
    release = listing.by_version(root).get(version)
    if release is None:
        where = whereabouts(root, version)
        return f"there is no release {version} under {root} any more{where}: roll back to another release"
    file = root / release.file
    return None if file.exists() else f"{file} is gone: roll back to another release"


def troubles(root: Path) -> list[str]:
    """Return what only people can repair: a changed journal, and aliases of lost releases.

    Raises Undamaged for a journal that this process may not read.
    """
    try:
        named = aliases.current(root)
    except Undamaged:
        raise
    except CheckpointError as error:
        return [str(error)]
    return [
        f"{alias}: {problem}"
        for alias, version in sorted(named.items())
        if (problem := _missing(root, version))
    ]


def _list(root: Path, as_data: bool) -> int:
    last = {change.alias: change for change in aliases.changes(root)}
    named = [change for _, change in sorted(last.items()) if change.version is not None]
    problems = troubles(root)
    if as_data:
        print_json([{**_in_json(change), "problem": _missing(root, change.version)} for change in named])
        return int(bool(problems))
    console = Console()
    if named:
        columns = ["alias", "version", "since", "reason"]
        rows = [[change.alias, change.version, _local(change), change.reason] for change in named]
        console.table(columns, rows, words=columns)
    else:
        console.say(f"No alias is set in {root}.")
    for problem in problems:
        console.say(problem)
    return int(bool(problems))


def _show(root: Path, name: str, as_data: bool) -> int:
    history = list(aliases.changes(root, name))
    version = history[-1].version if history else None
    problem = _missing(root, version)
    if as_data:
        found = {"changes": [_in_json(change) for change in history], "doubts": aliases.doubts(history)}
        print_json({"alias": name, "version": version, "problem": problem, **found})
        return int(problem is not None)
    console = Console()
    console.say(f"{name}: {version or 'names no release'}")
    for line in [*map(_in_words, history), *aliases.doubts(history)]:
        console.say(line)
    if problem:
        console.say(f"{name}: {problem}")
    return int(problem is not None)


def _set(root: Path, name: str, version: str | None, reason: str, as_data: bool) -> int:
    manifest = listing.by_version(root).get(version or "")
    if manifest and (wrong := verdict(root, manifest)):
        raise CheckpointError(f"{wrong} {name} stays as it was.")
    change = aliases.assign(root, name, version, reason)
    if change is None:
        raise CheckpointError(f"{name} {'names no release' if version is None else f'is {version}'} already.")
    releases_log.refresh(root)
    if as_data:
        print_json(_in_json(change))
    else:
        Console().say(_in_words(change))
    return 0


def _on(root: Path, name: str | None, day: str, as_data: bool) -> int:
    """Print the release that an alias, or each, named at a time; for a day, at its end."""
    start, end = span(day)
    if start > datetime.now(UTC):
        raise CheckpointError(f"{day} is still to come.")
    history = list(aliases.changes(root, name))
    answers: list[dict[str, Any]] = []
    for each in [name] if name else sorted({change.alias for change in history}):
        mine = [change for change in history if change.alias == each]
        within = [_in_json(c) for c in mine if start <= c.time <= end]
        version = aliases.at(root, each, end)
        answers.append({"alias": each, "version": version, "changes": within, "doubts": aliases.doubts(mine)})
    if as_data:
        print_json({"at": end.astimezone(UTC).isoformat(), "answers": answers})
        return 0
    console = Console()
    if not answers:
        console.say(f"No alias was ever set in {root}.")
    for answer in answers:
        console.say(f"{answer['alias']} on {day}: {answer['version'] or 'no release'}")
    for change in history:
        if start <= change.time <= end:
            console.say(_in_words(change))
    for answer in answers:
        for doubt in answer["doubts"]:
            console.say(doubt)
    return 0


def span(text: str) -> tuple[datetime, datetime]:
    """Return the first and last moment of a day in local time, or a point in time twice.

    A time without an offset such as +00:00 or Z is local. Raises CheckpointError for other text.
    """
    try:
        try:
            day = date.fromisoformat(text)
        except ValueError:
            moment = datetime.fromisoformat(text).astimezone()
            return moment, moment
        start, following = (datetime.combine(d, time()).astimezone() for d in (day, day + timedelta(days=1)))
        return start, following - timedelta(microseconds=1)
    except (ValueError, OverflowError, OSError):
        raise CheckpointError(
            f"{text!r} is not a date: give it as 2026-11-01, or with a time as 2026-11-01T18:30."
        ) from None


def why(root: Path, manifest: Manifest, as_data: bool) -> int:
    """Print the source of a release and the history of its aliases."""
    if wrong := verdict(root, manifest):
        raise CheckpointError(f"{wrong} Restore it from a copy, and roll back what names it meanwhile.")
    version = listing.version_of(manifest)
    moved = [c for c in aliases.changes(root) if version in (c.version, c.before)]
    names = sorted(alias for alias, named in aliases.current(root).items() if named == version)
    kept = "releases are never deleted"
    if as_data:
        facts = {"kept": [kept], "aliases": names, "changes": [_in_json(c) for c in moved]}
        print_json({**as_json(root, manifest, True), **facts})
        return 0
    console = Console()
    source = (manifest.metadata or {}).get("source") or {}
    origin = f", from {source.get('file')} of run {source.get('run')}" if source else ""
    console.say(f"released  {version}: {'; '.join(manifest.reasons)}{origin}")
    for change in moved:
        console.say(f"alias  {_in_words(change)}")
    console.say(f"kept   {kept}" + (f"; it is {' and '.join(names)}" if names else ""))
    return 0


@takes(
    RUN,
    Argument("--to", metavar="VERSION", help="the release; default: the one before"),
    Argument("--alias", default="champion", metavar="NAME", help="default: champion"),
    Argument("--reason", default="", metavar="TEXT", help="why, for the journal"),
)
def rollback(options: argparse.Namespace) -> int:
    """Verify an earlier release and set an alias to it."""
    from peakpoint.deployment.release.rollback import roll_back

    root = checkpoint_root(options.path)
    done = roll_back(root, options.to, options.alias, options.reason)
    if options.json:
        print_json({**_in_json(done.change), "file": str(root / done.file), "checked": list(done.checked)})
    else:
        Console().say(_in_words(done.change))
        Console().say(f"{root / done.file}: verified before ({', '.join(done.checked)})")
    return 0


@takes(RUN)
def changelog(options: argparse.Namespace) -> int:
    """Print the changelog of a folder's releases, and write it to metadata/CHANGELOG.md."""
    root = checkpoint_root(options.path)
    if options.json:
        found = releases_log.entries(root)
        print_json([{**vars(e), "aliases": [_in_json(c) for c in e.aliases]} for e in found])
    else:
        console = Console()
        for text in releases_log.text(root).splitlines():
            console.say(text)
    releases_log.write(root)
    return 0
