"""The charts of a set of runs."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from peakpoint.checkpointing.metrics import is_fraction, shown
from peakpoint.trainer.reports.charts.drawing import COLOURS, Chart, drawn, finite, label
from peakpoint.trainer.reports.study import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 8
"""Optimizers in a chart."""


def charts(by_optimizer: Mapping[str, Sequence[Result]], metric: str) -> Iterator[Chart]:
    """Yield the charts of results that have a peak, by optimizer; the metric is one for all."""
    shown_ones = dict(list(by_optimizer.items())[:MOST])
    yield drawn(
        "peaks",
        f"Validation {metric}: peak and final by optimizer",
        lambda axes, chart: _peaks(axes, chart, shown_ones, metric),
    )
    if any(result.sparsity for results in shown_ones.values() for result in results):
        yield drawn(
            "sparsity",
            f"Best {metric} at the target against sparsity: mean, deviation and every run",
            lambda axes, chart: _sparsity(axes, chart, shown_ones, metric),
        )


def _value(result: Result, name: str, metric: str) -> float:
    [value] = finite([result.measured(name)], 100 if is_fraction(metric) else 1)
    return value


def _peaks(axes: "Axes", chart: Chart, by_optimizer: Mapping[str, Sequence[Result]], metric: str) -> None:
    for place, (_, results) in enumerate(by_optimizer.items()):
        for number, result in enumerate(results):
            x = place + (number - (len(results) - 1) / 2) * min(0.12, 0.7 / len(results))
            best, final = _value(result, "overall", metric), _value(result, "final", metric)
            axes.plot([x, x], [best, final], color=COLOURS[place], lw=1)
            [peak] = axes.plot([x], [best], "o", color=COLOURS[place], ms=5)
            [end] = axes.plot([x], [final], "_", color=COLOURS[place], ms=9)
            assert result.overall is not None
            text = f"{result.run.name}: peak {shown(metric, result.overall.best)}"
            chart.mark(peak, f"{text} at epoch {result.overall.best_epoch}")
            chart.mark(end, f"{result.run.name}: final {shown(metric, result.final)}")
    axes.set_xticks(range(len(by_optimizer)), [label(name) for name in by_optimizer])
    axes.set_xlim(-0.6, len(by_optimizer) - 0.4)
    axes.set_ylabel(f"{label(metric)}{' (%)' if is_fraction(metric) else ''}: o peak, - final")


def _sparsity(axes: "Axes", chart: Chart, by_optimizer: Mapping[str, Sequence[Result]], metric: str) -> None:
    for place, (name, results) in enumerate(by_optimizer.items()):
        points: dict[float, list[float]] = {}
        for result in results:
            which = "at_target" if result.target else "overall"
            x, y = 100 * (result.target or 0.0), _value(result, which, metric)
            if y == y:
                points.setdefault(x, []).append(y)
                [point] = axes.plot([x], [y], ".", color=COLOURS[place], alpha=0.7)
                value = shown(metric, result.measured(which))
                chart.mark(point, f"{result.run.name} (seed {result.seed}): {value}")
        xs = sorted(points)
        means = [statistics.fmean(points[x]) for x in xs]
        sds = [statistics.stdev(points[x]) if len(points[x]) > 1 else 0.0 for x in xs]
        axes.errorbar(
            xs,
            means,
            yerr=sds if len(xs) == 1 else None,
            color=COLOURS[place],
            marker="_",
            ms=9,
            lw=1.4,
            capsize=3,
            label=label(name),
        )
        low, high = ([m + sign * sd for m, sd in zip(means, sds, strict=True)] for sign in (-1, 1))
        axes.fill_between(xs, low, high, color=COLOURS[place], alpha=0.15, lw=0)
    axes.set_xlabel("target sparsity (%)")
    axes.set_ylabel(f"{label(metric)}{' (%)' if is_fraction(metric) else ''}")
