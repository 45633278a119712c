"""The curves of a run as an image: its metric, its losses, its learning rate and its sparsity."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from peakpoint.base.errors import UserError, os_reason
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.checkpointing.metrics import is_fraction, shown
from peakpoint.trainer.reports.history import History, PeakRow, peaks, read_history

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    overall = peaks(history, metric, mode, [])[0]
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
    """Draw the metric over epochs with its peak and final value, and the sparsity when there is any."""
    scale = 100 if is_fraction(metric) else 1
    epochs = _epochs(evals)
    values = [_finite(e.metrics.get(metric)) * scale for e in evals]
    axes.plot(epochs, values, color="tab:blue", marker=_marker(evals))
    axes.set_ylabel(f"validation {metric}" + (" (%)" if scale == 100 else ""))
    best, final = shown(metric, row.best), shown(metric, row.final)
    axes.set_title(f"validation {metric}: peak {best} at epoch {row.best_epoch}, final {final}")
    axes.margins(y=0.15)
    marks = [
        (
            "peak",
            next(x for x, e in zip(epochs, evals, strict=True) if e.step == row.best_step),
            row.best,
            mode == "max",
        ),
        ("final", epochs[-1], row.final, mode != "max"),
    ]
    for name, epoch, value, above in marks:
        if name == "final" and (math.isnan(value) or evals[-1].step == row.best_step):
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
    """Draw training and validation loss over epochs, and the learning rate."""
    evals, train = history.evals, history.train
    steps_per_epoch = _steps_per_epoch(evals)
    epochs = [row["step"] / steps_per_epoch for row in train]
    losses = [_finite(row["loss"]) for row in train]
    axes.plot(epochs, losses, color="tab:gray", lw=0.8, label="training loss")
    losses = [_finite(e.metrics.get("loss")) for e in evals]
    axes.plot(_epochs(evals), losses, color="tab:orange", marker=_marker(evals), label="validation loss")
    axes.set_xlabel("epoch")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    if train:
        right = axes.twinx()
        right.plot(epochs, [_finite(row["lr"]) for row in train], color="tab:purple", ls=":")
        right.set_ylabel("learning rate, dotted", color="tab:purple")
        right.set_ylim(bottom=0)


def _steps_per_epoch(evals: list[EvalEnd]) -> float:
    return max(e.step / max(1, e.epoch) for e in evals) or 1


def _epochs(evals: list[EvalEnd]) -> list[float]:
    """Return when each evaluation was, in epochs; within an epoch it is a fraction."""
    return [e.step / _steps_per_epoch(evals) for e in evals]


def _marker(evals: list[EvalEnd]) -> str:
    return "." if len(evals) < 40 else ""


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.nan
