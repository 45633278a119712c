"""report: the peak of a run against its end, its tests and its kept files. Needs no torch."""

import argparse
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from peakpoint.base.errors import UserError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.metrics import direction
from peakpoint.checkpointing.storage import listing
from peakpoint.commands.arguments import Argument, a_path, takes
from peakpoint.commands.common import print_json
from peakpoint.trainer.reports import page, run_record, study, study_table, tables
from peakpoint.trainer.reports.history import read_rows

EVERY = 5
"""Seconds between two looks at a run that is watched."""


@takes(
    Argument("paths", nargs="+", type=a_path, metavar="RUN", help="a run, several, or a sweep's folder"),
    Argument("--metric", help="the metric to report; without it the one that the run monitored"),
    Argument("--watch", action="store_true", help="write report.html anew while the run trains"),
    Argument("--out", type=a_path, metavar="DIR", help="where report.html of several runs is written"),
)
def report(options: argparse.Namespace) -> int:
    """Print the report of a run, or the table of several, and write report.html. Raises UserError."""
    [first, *others] = options.paths
    if options.watch and (others or not study.is_run(first)):
        raise UserError("--watch is for one run: name its directory.")
    if others or not study.is_run(first):
        return _report_several(options)
    if options.watch:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(first)
    return _report_one(first, options)


def _report_several(options: argparse.Namespace) -> int:
    if options.metric:
        raise UserError("--metric is for one run: several are compared by the metric that they monitored.")
    results = study.read_results(options.paths)
    sweeps = [path for path in options.paths if not study.is_run(path)]
    for folder in sweeps:
        study_table.write_csv(folder / study_table.CSV, study.read_results([folder]))
    if options.json:
        print_json(study.facts(results))
    else:
        title = str(options.paths[0]) if len(options.paths) == 1 else ""
        study_table.print_study(Console(), results, title)
    if options.out or len(options.paths) == 1:
        out = options.out or options.paths[0]
        if not out.is_dir():
            raise UserError(f"{out} is not a directory: make it, or name another.")
        _write_page(options.paths, out, options)
    return 0


def _report_one(run: Path, options: argparse.Namespace) -> int:
    read_rows(run)
    monitored, mode, targets = run_record.watched(run)
    metric = options.metric or monitored
    if metric != monitored:
        mode = direction(metric) or "max"
    root = run / "checkpoints"
    kept = [m for m in listing.own(root, listing.manifests(root)) if (root / m.file).exists()]
    try:
        if options.json:
            print_json(tables.facts(run, metric, mode, targets, kept))
        else:
            console = Console()
            tables.print_report(console, run, metric=metric, mode=mode, targets=targets, kept=kept)
    finally:  # also without a finite value: the curves show when the run diverged
        _write_page([run], run, options)
    return 0


def _write_page(paths: Sequence[Path], out: Path, options: argparse.Namespace) -> None:
    written = page.write(paths, out)
    if not options.json:
        console = Console()
        console.say("")
        console.say(f"Report: {written}")


def _watch(run: Path) -> None:
    """Write the page anew whenever the run has written something, until it ends."""
    before: object = None
    running = True
    while running:
        running = study.read_result(run).state == "running"
        now = [(file.stat().st_mtime_ns, file.stat().st_size) for file in _watched(run)]
        if now != before:
            written = page.write([run], run, refresh=EVERY if running else None)
            if before is None:
                Console().say(f"Report: {written}, renewed until the run ends or Ctrl-C.")
            before = now
        if running:
            time.sleep(EVERY)


def _watched(run: Path) -> list[Path]:
    return [file for name in (run_record.METRICS, run_record.STATUS) if (file := run / name).exists()]
