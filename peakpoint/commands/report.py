"""report: the peak of a run against its end, its tests and its kept files. Needs no torch."""

import argparse
from pathlib import Path

from peakpoint.base.errors import UserError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.metrics import direction
from peakpoint.checkpointing.storage import listing
from peakpoint.commands.arguments import Argument, a_path, takes
from peakpoint.commands.common import print_json
from peakpoint.trainer.reports import plots, run_record, study, study_table, tables
from peakpoint.trainer.reports.history import read_history


@takes(
    Argument("paths", nargs="+", type=a_path, metavar="RUN", help="a run, several, or a sweep's folder"),
    Argument("--metric", help="the metric to report; without it the one that the run monitored"),
)
def report(options: argparse.Namespace) -> int:
    """Print the report of a run and draw its curves, or the table of several. Raises UserError."""
    [first, *others] = options.paths
    if others or not study.is_run(first):
        return _report_several(options)
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
    return 0


def _report_one(run: Path, options: argparse.Namespace) -> int:
    read_history(run)
    monitored, mode, targets = run_record.watched(run)
    metric = options.metric or monitored
    if metric != monitored:
        mode = direction(metric) or "max"
    root = run / "checkpoints"
    kept = [m for m in listing.own(root, listing.manifests(root)) if (root / m.file).exists()]
    if options.json:
        print_json(tables.facts(run, metric, mode, targets, kept))
    else:
        console = Console()
        tables.print_report(console, run, metric=metric, mode=mode, targets=targets, kept=kept)
    curves = plots.plot(run, metric, mode)
    if curves and not options.json:
        console.say("")
        console.say(f"Curves: {curves}")
    return 0
