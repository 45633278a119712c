"""select: the checkpoint that the rules choose, and the rules that rejected the others."""

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakpoint.base.disk_space import in_words
from peakpoint.base.terminal import Console, say_error
from peakpoint.checkpointing.metrics import shown
from peakpoint.commands.arguments import EVALUATION, RULES, Argument, a_path, takes
from peakpoint.commands.common import as_json, check_there, checkpoint_roots, print_json
from peakpoint.deployment.selection import rules as rule_files

if TYPE_CHECKING:
    from peakpoint.deployment.selection.select import Selection


@takes(
    Argument("runs", nargs="+", type=a_path, metavar="RUN", help="a run, or a tree of runs"),
    RULES,
    Argument("--champion-of", type=a_path, metavar="RUN", help="whose champion to compare with"),
    Argument("--dry-run", action="store_true", help="do not evaluate the chosen one again"),
    *EVALUATION,
)
def select(options: argparse.Namespace) -> int:
    """Print every candidate; 1 when nothing qualifies."""
    rules = rule_files.load(options.rules)
    check_there(*options.runs, options.champion_of, options.data_root)
    roots = [root for path in options.runs for root in checkpoint_roots(path)]
    from peakpoint.deployment.selection.select import choose  # it brings torch

    found = choose(
        roots,
        rules,
        champion_of=options.champion_of,
        data_root=options.data_root,
        device=options.device,
        dry_run=options.dry_run,
    )
    if options.json:
        print_json(_plain(found))
    else:
        _print(found)
    if found.winner is None:
        say_error(found.nothing())
    return int(found.winner is None)


def short(path: Path) -> str:
    """Return a path as text, relative to the working directory where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _print(found: "Selection") -> None:
    console = Console()
    runs = {c.root for c in found.candidates}
    base = Path(os.path.commonpath(runs)) if len(runs) > 1 else None
    names = [n for n in found.rules.metrics if n not in ("epoch", "bytes")]
    rows: list[list[object]] = []
    rejected = []
    for c in found.candidates:
        file = str(c.path.relative_to(base)) if base else c.manifest.file
        values = [_value(name, c.facts.get(name)) for name in names]
        rows.append([c.rank or "", file, c.manifest.epoch, *values, in_words(c.manifest.bytes)])
        rejected += [f"rejected  {file}: {'; '.join(c.rejected)}"] if c.rejected else []
    console.table(["", "file", "epoch", *names, "size"], rows, words=["file"])
    for line in ("", *rejected):
        console.say(line)
    for note in found.notes:
        console.say(note)
    if found.winner is None:
        return
    root, manifest = found.winner
    console.say(f"chosen by {found.rules.name}: {short(root / manifest.file)}")
    if found.measured is None:
        console.say("not measured again: --dry-run")
    else:
        again = ", ".join(f"{name} {_value(name, value)}" for name, value in found.measured.metrics.items())
        console.say(f"measured again on {found.measured.samples} images of {found.measured.split}: {again}")


def _value(name: str, value: float | None) -> str:
    return f"{value:,.0f}" if value is not None and name.endswith("bytes") else shown(name, value)


def _plain(found: "Selection") -> dict[str, Any]:
    return {
        "rules": found.rules.name,
        "champion": found.champion,
        "winner": str(found.winner[0] / found.winner[1].file) if found.winner else None,
        "measured": found.measured and asdict(found.measured),
        "notes": list(found.notes),
        "candidates": [
            {
                **as_json(c.root, c.manifest, None),
                "facts": c.facts,
                "rank": c.rank,
                "rejected": c.rejected,
            }
            for c in found.candidates
        ],
    }
