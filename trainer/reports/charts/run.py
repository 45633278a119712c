"""The charts of one run."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from peakpoint.checkpointing.events import EvalEnd
from peakpoint.checkpointing.metrics import is_fraction, shown
from peakpoint.checkpointing.policy import order, ranked
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.trainer.reports.charts.drawing import COLOURS, GRID, INK, Chart, drawn, finite, label
from peakpoint.trainer.reports.charts.pareto import front
from peakpoint.trainer.reports.history import History, peak_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_MARKS = 200
"""Checkpoints that are marked in a chart."""
SHADE = "#4a90d9"
"""A blue that can be seen on a light and on a dark page: a picture within a chart keeps its colours."""
BLUE, ORANGE, GREEN, PURPLE, RED, *_ = COLOURS


def charts(history: History, metric: str, mode: str, kept: Sequence[Manifest]) -> Iterator[Chart]:
    """Yield the charts that the rows of a run allow; `kept` are the checkpoints that are there."""
    evals = history.evals
    pruned = any(e.sparsity > 0 for e in evals)
    if evals:
        yield drawn(
            "metric",
            f"{metric}: validation and training",
            lambda axes, chart: _metric(axes, chart, history, metric, mode, () if pruned else kept),
        )
    if evals or history.train:
        yield drawn("loss", "Loss: validation and training", lambda axes, _: _loss(axes, history))
    if pruned:
        yield drawn(
            "sparsity",
            "Sparsity, and every checkpoint that is kept",
            lambda axes, chart: _ramp(axes, chart, history, kept),
        )
        yield drawn(
            "pareto",
            f"{metric} against sparsity",
            lambda axes, chart: _pareto(axes, chart, evals, metric, mode),
        )
    if any(e.layers for e in evals):
        layers = list(dict.fromkeys(name for e in evals for name in e.layers or ()))[:200]
        height = min(8.0, max(2.2, 1 + 0.16 * len(layers)))
        yield drawn(
            "layers",
            "Sparsity of each layer",
            lambda axes, _: _layers(axes, history, layers),
            size=(5.2, height),
        )
    for name, title in (("lr", "Learning rate"), ("grad_norm", "Norm of the gradients before clipping")):
        values = finite([row.get(name) for row in history.train])
        if not all(map(math.isnan, values)):
            yield drawn(name, title, partial(_trained, history=history, name=name, title=title))
    if history.saves:
        yield drawn("stalls", "Seconds of each save", lambda axes, _: _stalls(axes, history))


def _epochs(history: History, steps: Iterable[float]) -> list[float]:
    """Return the epoch of each step, with its fraction; the step itself before the first evaluation."""
    per_epoch = max((e.step / max(1, e.epoch) for e in history.evals), default=0) or 1
    return [step / per_epoch for step in steps]


def _of_evals(history: History) -> list[float]:
    return _epochs(history, (e.step for e in history.evals))


def _of_train(history: History) -> list[float]:
    return _epochs(history, (row["step"] for row in history.train))


def _over_time(axes: "Axes", history: History) -> None:
    _whole(axes, "epoch" if history.evals else "step")


def _whole(axes: "Axes", name: str) -> None:
    """Name the horizontal axis of what is counted, whose ticks are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _scale(metric: str) -> int:
    return 100 if is_fraction(metric) else 1


def _unit(metric: str) -> str:
    return f"{label(metric)} (%)" if is_fraction(metric) else label(metric)


def _style(points: Sequence[object]) -> dict[str, Any]:
    return {"marker": "." if len(points) < 40 else "", "lw": 1.4}


def _thin(points: Sequence[object]) -> dict[str, Any]:
    return {"marker": "." if len(points) == 1 else "", "lw": 0.9}


def _metric(
    axes: "Axes", chart: Chart, history: History, metric: str, mode: str, kept: Sequence[Manifest]
) -> None:
    evals, scale = history.evals, _scale(metric)
    values = finite([e.metrics.get(metric) for e in evals], scale)
    axes.plot(_of_evals(history), values, color=BLUE, label="validation", **_style(evals))
    if metric == "accuracy":
        trained = finite([row["accuracy"] for row in history.train], scale)
        if not all(map(math.isnan, trained)):
            axes.plot(_of_train(history), trained, color=ORANGE, label="training", **_thin(trained))
    rows = peak_rows(evals, metric, mode, [])
    if rows:
        [point] = axes.plot(
            _epochs(history, [rows[0].best_step]),
            [rows[0].best * scale],
            "o",
            color=RED,
            label="peak",
            zorder=5,
        )
        chart.mark(point, f"peak: epoch {rows[0].best_epoch}, {metric} {shown(metric, rows[0].best)}")
    for m in [m for m in kept if m.metrics][:MOST_MARKS]:
        [value] = finite([m.metrics.get(metric)], scale)
        [point] = axes.plot(
            _epochs(history, [m.global_step]), [value], "D", color=PURPLE, ms=4, alpha=0.8, zorder=4
        )
        chart.mark(point, _why(m))
    if kept:
        axes.plot([], [], "D", color=PURPLE, ms=4, label="kept")
    _over_time(axes, history)
    axes.set_ylabel(_unit(metric))


def _why(m: Manifest) -> str:
    return f"{m.file} (epoch {m.epoch}, step {m.global_step}): {'; '.join(m.reasons)}"


def _loss(axes: "Axes", history: History) -> None:
    evals = history.evals
    losses = finite([e.metrics.get("loss") for e in evals])
    if evals:
        axes.plot(_of_evals(history), losses, color=BLUE, label="validation", **_style(evals))
    losses = finite([row["loss"] for row in history.train])
    axes.plot(_of_train(history), losses, color=ORANGE, label="training", **_thin(losses))
    _over_time(axes, history)
    axes.set_ylabel("loss (nats)")


def _trained(axes: "Axes", _: Chart, history: History, name: str, title: str) -> None:
    values = finite([row[name] for row in history.train])
    axes.plot(_of_train(history), values, color=GREEN if name == "lr" else PURPLE, **_thin(values))
    _over_time(axes, history)
    axes.set_ylabel(title.split(" before")[0].lower())
    axes.set_ylim(bottom=0)


def _ramp(axes: "Axes", chart: Chart, history: History, kept: Sequence[Manifest]) -> None:
    evals = history.evals
    axes.plot(
        _of_evals(history), finite([e.sparsity for e in evals], 100), color=GREEN, lw=1.4, label="sparsity"
    )
    known = {e.step: e.sparsity for e in evals}
    for m in list(kept)[:MOST_MARKS]:
        [value] = finite([known.get(m.global_step, m.sparsity)], 100)
        colour = RED if m.tier == "milestone" else PURPLE
        [point] = axes.plot(
            _epochs(history, [m.global_step]), [value], "D", color=colour, ms=5, alpha=0.75, zorder=5
        )
        chart.mark(point, _why(m))
    for colour, tier in ((RED, "milestone"), (PURPLE, "training")):
        if any(m.tier == tier for m in kept):
            axes.plot([], [], "D", color=colour, ms=5, label=f"kept, {tier}")
    _over_time(axes, history)
    axes.set_ylabel("sparsity (%)")
    axes.set_ylim(-4, 104)


def _pareto(axes: "Axes", chart: Chart, evals: Sequence[EvalEnd], metric: str, mode: str) -> None:
    """Draw each evaluation, and the front of those that no other beats in sparsity and in the metric."""
    scale = _scale(metric)
    points = [(e, value) for e in evals if (value := ranked(e.metrics, metric)) is not None]
    best = [points[n] for n in front([(-e.sparsity, order(value, mode)) for e, value in points])]
    best.reverse()
    x, y = [100 * e.sparsity for e, _ in points], finite([v for _, v in points], scale)
    axes.plot(x, y, ".", color=INK, alpha=0.5, label="evaluations")
    x, y = [100 * e.sparsity for e, _ in best], finite([v for _, v in best], scale)
    axes.plot(x, y, lw=1.2, label="Pareto front", drawstyle="steps-pre", color=BLUE)
    for e, value in best[:MOST_MARKS]:
        [point] = axes.plot([100 * e.sparsity], finite([value], scale), "o", color=BLUE, ms=4)
        chart.mark(point, f"epoch {e.epoch}: {e.sparsity:.2%} sparse, {metric} {shown(metric, value)}")
    axes.set_xlabel("sparsity (%)")
    axes.set_ylabel(_unit(metric))


def _shades(axes: "Axes", values: Sequence[Sequence[float]], **options: Any) -> None:
    """Draw a table of fractions as shades of one colour, from transparent to full."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("shades", [f"{SHADE}00", f"{SHADE}ff"])
    image = axes.imshow(
        values, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest", **options
    )
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_edgecolor(GRID)
    axes.grid(visible=False)


def _layers(axes: "Axes", history: History, layers: Sequence[str]) -> None:
    measured = [e for e in history.evals if e.layers]
    table = [finite([(e.layers or {}).get(name) for e in measured]) for name in layers]
    first, last = _epochs(history, (measured[0].step, measured[-1].step))
    half = (last - first) / (len(measured) - 1) / 2 if len(measured) > 1 else 0.5
    _shades(axes, table, extent=(first - half, last + half, len(layers) - 0.5, -0.5))
    stride = max(1, len(layers) // 40)
    names = [label(name.removesuffix(".weight")) for name in layers[::stride]]
    axes.set_yticks(range(0, len(layers), stride), names, fontsize=7)
    _over_time(axes, history)


def _stalls(axes: "Axes", history: History) -> None:
    numbers = range(1, len(history.saves) + 1)
    total = finite([save["total_s"] for save in history.saves])
    stall = finite([save["stall_s"] for save in history.saves])
    axes.vlines(numbers, 0, total, color=GRID, lw=3, label="until it was on disk")
    axes.vlines(numbers, 0, stall, color=RED, lw=3, label="training waited")
    _whole(axes, "save")
    axes.set_ylabel("seconds")


def confusion(cells: Sequence[Sequence[int]], classes: Sequence[str]) -> Chart:
    """Return the confusion matrix as shares of each class; at most 100 classes."""
    size = min(100, len(classes))
    counts: Mapping[tuple[int, int], int] = {(cell[0], cell[1]): cell[2] for cell in cells}
    of_class = [sum(n for (true, _), n in counts.items() if true == row) or 1 for row in range(size)]
    table = [[counts.get((row, column), 0) / of_class[row] for column in range(size)] for row in range(size)]

    def draw(axes: "Axes", _: Chart) -> None:
        _shades(axes, table)
        stride = max(1, size // 20)
        names = [label(name)[:14] for name in classes[:size:stride]]
        axes.set_xticks(range(0, size, stride), names, rotation=90, fontsize=7)
        axes.set_yticks(range(0, size, stride), names, fontsize=7)
        axes.set_xlabel("predicted")
        axes.set_ylabel("label")

    return drawn("confusion", "Confusion matrix of the test set: share of each class", draw, size=(5.2, 4.6))
