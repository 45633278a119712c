"""record: what was run, in words. The records of two runs compared, for diff. Needs no torch."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peakpoint.base import bounded
from peakpoint.base.errors import UserError
from peakpoint.base.given import as_mapping
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.state.differences import differ, flat
from peakpoint.commands.arguments import path_argument, takes
from peakpoint.commands.common import print_json, refuse_several
from peakpoint.trainer.config import recorded
from peakpoint.trainer.reports import comparison, run_record, study
from peakpoint.trainer.reports.comparison import short


@takes(path_argument("run", "RUN", "the directory of a run"))
def record(options: argparse.Namespace) -> int:
    """Print the record of a run in words. Raises UserError or CheckpointError."""
    found = facts(options.run)
    if options.json:
        print_json(found)
        return 0
    console = Console()
    console.say(f"{options.run}, {found['state']}")
    for name, value in lines(found):
        console.say(f"  {name:<12} {value}")
    return 0


def facts(run: Path) -> dict[str, Any]:
    """Return the record of a run as plain values: the attempts by what was typed, and how it ended."""
    found, status = _read(run), {}
    if (run / run_record.STATUS).exists():
        status = run_record.read_status(run)
    diff = found.get("git_diff")
    return {
        "run": found.get("run"),
        "state": study.read_result(run).state,
        "settings": recorded.overrides(found["attempts"][-1]),
        "attempts": [
            {
                name: attempt.get(name)
                for name in ("number", "started", "overrides", "resumed_from", "host", "derived")
            }
            for attempt in found["attempts"]
        ],
        "git_commit": found.get("git_commit"),
        "uncommitted_lines": len(diff.splitlines()) if isinstance(diff, str) else None,
        **{name: found.get(name) for name in ("seed", "data", "packages", "python", "hardware")},
        **{name: found.get(name) for name in ("forked_from", "reproduces")},
        "end": {name: status.get(name) for name in ("epoch", "step", "reason", "error", "seconds", "time")},
    }


def _read(run: Path) -> dict[str, Any]:
    refuse_several(run)
    bounded.refuse_links(run)
    return run_record.read_run(run)


def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the record as pairs of a name and words; what is not recorded is left out."""
    [first, *later] = found["attempts"]
    changes = found["uncommitted_lines"]
    code = f"commit {short(found['git_commit'])}" + (
        f", and {changes} lines not committed" if changes else ""
    )
    data, hardware = (as_mapping(found[name]) for name in ("data", "hardware"))
    packages = {**as_mapping(found["packages"]), "python": found["python"]}
    origin = as_mapping(found["reproduces"]).get("directory")
    words = [
        ("settings", " ".join(found["settings"]) or "those of conf/"),
        ("derived", _words(as_mapping(found["attempts"][-1]["derived"]))),
        ("seed", short(found["seed"])),
        ("started", f"{short(first['started'])} on {short(first['host'])}"),
        *(("resumed", f"{short(a['started'])} from {short(a['resumed_from'])}") for a in later),
        ("from", short(found["forked_from"]) if found["forked_from"] else ""),
        ("reproduces", short(origin) if origin else ""),
        ("code", code),
        ("data", _words(data)),
        ("hardware", _words(hardware)),
        ("packages", _words(packages)),
        ("end", _words(found["end"])),
    ]
    return [(name, text) for name, text in words if text]


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {short(value)}" for name, value in values.items() if value not in (None, [], "")
    )


def diff_records(a: Path, b: Path, *, json: bool) -> int:
    """Print what the records of two runs do not share, and the first row of metrics that differs."""
    left, right = _read(a), _read(b)
    config = differ(*(flat(each.get(run_record.NOW, each.get("config", {}))) for each in (left, right)))
    circumstances = comparison.differing(left, right)
    try:
        found, why = comparison.compare(a, b), ""
    except UserError as error:
        found, why = None, str(error)
    if json:
        first = vars(found.first) if found and found.first else None
        rows = found.rows if found else None
        circumstantial = {each.name: [each.before, each.now] for each in circumstances}
        facts = {"a": str(a), "b": str(b), "config": config, "circumstances": circumstantial}
        print_json({**facts, "equal_rows": rows, "first": first, "unread": why or None})
        return 0
    console = Console()
    console.say(f"a  {a}")
    console.say(f"b  {b}")
    tables = {
        "config": [[key, *map(short, pair)] for key, pair in config.items()],
        "circumstances": [[each.name, each.before, each.now] for each in circumstances],
    }
    for title, table in tables.items():
        if table:
            console.table(["", "a", "b"], table, title=title, words=["a", "b"])
    if found is None:
        console.say(f"The metrics were not compared: {why}")
    elif found.first is None:
        counts = ", ".join(f"{count} {kind}" for kind, count in found.rows.items())
        console.say(f"All rows of metrics that both have are equal ({counts}; {found.digests} with digests).")
    else:
        console.say(f"The first row that differs: {found.first}")
    console.say(
        f"For the weights of their newest checkpoints: peakpoint diff {a}/checkpoints {b}/checkpoints"
    )
    return 0
