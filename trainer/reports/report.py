"""The report of a run: peak against final, test results, kept files, and curves.

Works from what a run wrote (metrics.jsonl and the manifests beside its checkpoints) and needs no torch.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakpoint.base.errors import UserError, os_reason
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.checkpointing.policy import ranked
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.trainer.reports.history import History, PeakRow, peak_rows, read_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PeakRow", "peak_rows", "plot", "print_report", "read_history", "shown"]

FRACTIONS = ("accuracy", "top5_accuracy", "f1_score")
"""Metrics that are printed in percent."""


def shown(metric: str, value: float | None) -> str:
    """A metric's value for people: percent for fractions, four decimals for the rest, `-` for None."""
    if value is None:
        return "-"
    return f"{value:.2%}" if metric in FRACTIONS and math.isfinite(value) else f"{value:.4f}"


def print_report(
    console: Console, run: Path, *, metric: str, mode: str, targets: Iterable[float], kept: Sequence[Manifest]
) -> None:
    """Print the peak against the final epoch, the test results, and where each of the `kept` files is.

    Raises UserError as read_history does, and for a metric without a finite value.
    """
    history = read_history(run)
    rows = _peaks(history, metric, mode, targets)
    console.table(
        [f"Validation {metric}", "best epoch", "best", "final", "degradation"],
        [
            [row.scope, row.best_epoch, *(shown(metric, v) for v in (row.best, row.final, row.degradation))]
            for row in rows
        ],
    )
    if history.tests:
        names = list(dict.fromkeys(name for test in history.tests.values() for name in test["metrics"]))
        console.say("")
        console.table(
            ["Test", "epoch", *names],
            [
                [which, test["epoch"], *(shown(name, test["metrics"].get(name)) for name in names)]
                for which, test in sorted(history.tests.items(), reverse=True)
            ],
        )
    if kept:
        console.say("")
        _print_kept(console, run, metric, kept)
    last = history.evals[-1]
    if last.sparsity > 0 and last.overall is not None:
        console.say("")
        console.say(
            f"Zeros at the end: {last.sparsity:.2%} of the prunable weights, {last.overall:.2%} of all "
            "parameters."
        )
    if history.skipped:
        steps = int(history.train[-1]["step"])
        console.say("")
        console.say(f"Skipped, as they were not finite: {history.skipped} of {steps} steps.")
    if history.unreadable:
        console.say("")
        console.say(
            f"Lines of metrics.jsonl that could not be read: {history.unreadable}. They do not count."
        )


def _peaks(history: History, metric: str, mode: str, targets: Iterable[float]) -> list[PeakRow]:
    rows = peak_rows(history.evals, metric, mode, targets)
    if not rows:
        names = ", ".join(sorted({name for e in history.evals for name in e.metrics}))
        raise UserError(f"No evaluation has a finite {metric}; the metrics of this run are: {names}.")
    return rows


def _print_kept(console: Console, run: Path, metric: str, kept: Sequence[Manifest]) -> None:
    ordered = sorted(kept, key=lambda m: (m.tier, m.sequence))
    rows: list[list[object]] = []
    for number, m in enumerate(ordered, 1):
        sparsity = "-" if m.sparsity is None else f"{m.sparsity:.2%}"
        value = shown(metric, ranked(m.metrics, metric))
        rows.append([number, m.epoch, value, sparsity, f"{m.bytes / 1e6:.1f}", "; ".join(m.reasons)])
    console.table(["Kept", "epoch", metric, "sparsity", "MB", "why"], rows, words=["why"])
    console.say("")
    for number, m in enumerate(ordered, 1):
        console.say(f"{number}  {run / 'checkpoints' / m.file}")


def plot(run: Path, metric: str, mode: str) -> Path | None:
    """Write `<run>/curves.png` and return its path, or None when matplotlib is not installed.

    Raises UserError as read_history does, for a metric without a finite value, and for a failed write.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    history = read_history(run)
    overall = _peaks(history, metric, mode, [])[0]
    # A figure with its own canvas: pyplot would keep it, and choose a backend for the whole process.
    figure = Figure(figsize=(9, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    _plot_metric(upper, history.evals, metric, overall, mode)
    _plot_training(lower, history)
    path = run / "curves.png"
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(staged, format="png")
        staged.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {os_reason(error)}.") from None
    finally:
        staged.unlink(missing_ok=True)
    return path


def _plot_metric(axes: "Axes", evals: list[EvalEnd], metric: str, row: PeakRow, mode: str) -> None:
    """The metric over epochs with its peak and final value, and the sparsity when there is any."""
    scale = 100 if metric in FRACTIONS else 1
    epochs = [e.epoch for e in evals]
    values = [_finite(e.metrics.get(metric)) * scale for e in evals]
    axes.plot(epochs, values, color="tab:blue", marker=_marker(evals))
    axes.set_ylabel(f"validation {metric}" + (" (%)" if scale == 100 else ""))
    best, final = shown(metric, row.best), shown(metric, row.final)
    axes.set_title(f"validation {metric}: peak {best} at epoch {row.best_epoch}, final {final}")
    axes.margins(y=0.15)
    marks = [
        ("peak", row.best_epoch, row.best, mode == "max"),
        ("final", epochs[-1], row.final, mode != "max"),
    ]
    for name, epoch, value, above in marks:
        if name == "final" and (math.isnan(value) or epoch == row.best_epoch):
            continue
        axes.plot([epoch], [value * scale], "o", color="tab:red" if name == "peak" else "black", zorder=5)
        axes.annotate(
            f"{name} {shown(metric, value)}",
            (epoch, value * scale),
            xytext=(0, 9 if above else -9),
            textcoords="offset points",
            ha="right" if epoch > 0.8 * epochs[-1] else "center",
            va="bottom" if above else "top",
        )
    axes.grid(alpha=0.3)
    if any(e.sparsity > 0 for e in evals):
        right = axes.twinx()
        right.plot(
            epochs, [100 * e.sparsity for e in evals], color="tab:green", ls="--", drawstyle="steps-post"
        )
        right.set_ylabel("sparsity (%), dashed", color="tab:green")
        right.set_ylim(-2, 102)
        axes.set_zorder(right.get_zorder() + 1)  # the labels lie over the sparsity
        axes.patch.set_visible(False)


def _plot_training(axes: "Axes", history: History) -> None:
    """Training and validation loss over epochs, and the learning rate."""
    evals, train = history.evals, history.train
    steps_per_epoch = max(e.step / max(1, e.epoch) for e in evals) or 1
    epochs = [row["step"] / steps_per_epoch for row in train]
    losses = [_finite(row["loss"]) for row in train]
    axes.plot(epochs, losses, color="tab:gray", lw=0.8, label="training loss")
    losses = [_finite(e.metrics.get("loss")) for e in evals]
    axes.plot(
        [e.epoch for e in evals], losses, color="tab:orange", marker=_marker(evals), label="validation loss"
    )
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    if train:
        right = axes.twinx()
        right.plot(epochs, [_finite(row["lr"]) for row in train], color="tab:purple", ls=":")
        right.set_ylabel("learning rate, dotted", color="tab:purple")
        right.set_ylim(bottom=0)


def _marker(evals: list[EvalEnd]) -> str:
    return "." if len(evals) < 40 else ""


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan


def as_json(run: Path, metric: str, mode: str, targets: list[float], kept: Sequence[Manifest]) -> str:
    history = read_history(run)
    plain = {
        "metric": metric,
        "mode": mode,
        "peaks": [asdict(row) for row in _peaks(history, metric, mode, targets)],
        "tests": history.tests,
        "skipped_steps": history.skipped,
        "kept": [asdict(m) for m in kept],
    }
    return json.dumps(_encodable(plain), indent=2, allow_nan=False)


def _encodable(value: Any) -> Any:
    """JSON has neither NaN nor infinity: they become strings, as in the files of the run."""
    if isinstance(value, dict):
        return {key: _encodable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_encodable(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
