"""The report of a run: peak against final, test results and kept files.

Works from what a run wrote (metrics.jsonl and the manifests beside its checkpoints) and needs no torch.
"""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.checkpointing.metrics import shown
from peakpoint.checkpointing.policies.sparsity import SLACK
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.trainer.reports.history import History, PeakRow, peaks, read_history

Rows = tuple[list[str], list[list[str]]]
"""The head of a table, and its rows."""


def print_report(
    console: Console, run: Path, *, metric: str, mode: str, targets: Iterable[float], kept: Sequence[Manifest]
) -> None:
    """Print the peak against the final epoch, the test results, and why each of the `kept` files is there.

    Raises UserError as read_history does, and for a metric without a finite value.
    """
    history = read_history(run)
    rows = peaks(history, metric, mode, targets)
    console.table(*peak_table(history, rows, metric))
    if history.tests:
        console.say("")
        console.table(*test_table(history))
    if kept:
        console.say("")
        _print_kept(console, run, kept)
    last = history.evals[-1]
    notes = [*incomparable(rows)]
    if last.sparsity > 0 and last.overall is not None:
        share = f"{last.sparsity:.2%} of the prunable weights, {last.overall:.2%} of all parameters"
        notes.append(f"Zeros at the end: {share}.")
    if history.skipped:
        steps = int(history.train[-1]["step"])
        notes.append(f"Skipped, as they were not finite: {history.skipped} of {steps} steps.")
    if history.unreadable:
        lines = history.unreadable
        notes.append(f"Lines of metrics.jsonl that could not be read: {lines}. They do not count.")
    for note in notes:
        console.say("")
        console.say(note)


def peak_table(history: History, rows: Sequence[PeakRow], metric: str) -> Rows:
    """Return peak against final, a row for each scope."""
    head = [f"Validation {metric}", "best epoch", "best", "final", "degradation"]
    return head, [
        [row.scope, _when(history.evals, row)]
        + [shown(metric, value) for value in (row.best, row.final, row.degradation)]
        for row in rows
    ]


def test_table(history: History) -> Rows:
    """Return the metrics of the test set, a row for the selected weights and one for the final ones."""
    names = list(dict.fromkeys(name for test in history.tests.values() for name in test["metrics"]))
    return ["Test", "epoch", *names], [
        [which, str(test["epoch"]), *(shown(name, test["metrics"].get(name)) for name in names)]
        for which, test in sorted(history.tests.items(), reverse=True)
    ]


def _when(evals: Sequence[EvalEnd], row: PeakRow) -> str:
    """Return the epoch of a peak, with its step where the epoch had several evaluations."""
    several = sum(e.epoch == row.best_epoch for e in evals) > 1
    return f"{row.best_epoch}, step {row.best_step}" if several else str(row.best_epoch)


def incomparable(rows: Sequence[PeakRow]) -> Iterable[str]:
    """Yield the warning for an overall peak of a network that was less sparse than the target."""
    peak, target = rows[0], rows[-1]
    if peak.sparsity < target.sparsity - SLACK:
        zeros = shown("sparsity", peak.sparsity)
        yield f"The overall peak has {zeros} zeros, fewer than the target: not comparable."


def _print_kept(console: Console, run: Path, kept: Sequence[Manifest]) -> None:
    ordered = sorted(kept, key=lambda m: (m.tier, m.sequence))
    console.table(["Kept", "why"], [[m.file, "; ".join(m.reasons)] for m in ordered], words=["why"])
    console.say(f"Their sizes and metrics: {shlex.join(['peakpoint', 'ls', str(run)])}")


def facts(
    run: Path, metric: str, mode: str, targets: list[float], kept: Sequence[Manifest]
) -> dict[str, Any]:
    """Return the report as a dict. Raises UserError as print_report does."""
    history = read_history(run)
    return {
        "metric": metric,
        "mode": mode,
        "peaks": [asdict(row) for row in peaks(history, metric, mode, targets)],
        "tests": history.tests,
        "skipped_steps": history.skipped,
        "kept": [asdict(m) for m in kept],
    }
