"""report: the peak of a run against its end, its tests and its kept files. Needs no torch."""

import argparse

from peakpoint.base.terminal import Console
from peakpoint.checkpointing.metrics import direction
from peakpoint.checkpointing.storage import listing
from peakpoint.commands.arguments import Argument, path_argument, takes
from peakpoint.commands.common import print_json
from peakpoint.trainer.reports import plots, run_record, tables
from peakpoint.trainer.reports.history import read_history


@takes(
    path_argument("run", "RUN", "the directory of a run"),
    Argument("--metric", help="the metric to report; without it the one that the run monitored"),
)
def report(options: argparse.Namespace) -> int:
    """Print the report of a run again, and draw its curves. Raises UserError."""
    run = options.run
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
