"""The charts of a set of runs."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from peakpoint.checkpointing.metrics import is_fraction, shown
from peakpoint.checkpointing.policy import order
from peakpoint.trainer.reports.charts.drawing import COLOURS, INK, Chart, drawn, finite, label
from peakpoint.trainer.reports.charts.pareto import front
from peakpoint.trainer.reports.study import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kinds = Mapping[str, Sequence[Result]]
"""Results by what distinguishes them in a chart, such as the optimizer."""
MOST = len(COLOURS)
"""Kinds in a chart."""
SPARSITY = "pruning.target"


@dataclass(frozen=True)
class Axis:
    """What a metric is drawn against: the name of its chart, its words, and its value for a result.

    `unit` is None for percent; `sign` is -1 where a larger value is the better one.
    """

    name: str
    title: str
    label: str
    unit: str | None
    value: Callable[[Result], float | None]
    sign: int = 1


AXES = (
    Axis("sparsity", "sparsity", "target sparsity (%)", None, lambda r: 100 * (r.target or 0.0), -1),
    Axis("bytes", "size", "size of the weights, zeros packed away", "B", lambda r: r.bytes),
    Axis("macs", "MACs", "MACs for an image, of the weights that are not zero", "", lambda r: r.macs),
)


@dataclass(frozen=True)
class _Point:
    """The results of one configuration in a chart: means, and the deviation of the value."""

    x: float
    y: float
    sd: float
    n: int


def charts(kinds: Kinds, metric: str, mode: str, prefix: str = "") -> Iterator[Chart]:
    """Yield the charts of results that have a peak; the metric is one for all.

    `prefix` begins the name of each.
    """
    few = dict(list(kinds.items())[:MOST])
    yield drawn(
        f"{prefix}peaks", f"Validation {metric}: peak and final", partial(_peaks, kinds=few, metric=metric)
    )
    pruned = any(result.sparsity for results in few.values() for result in results)
    for axis in AXES:
        known = [axis.value(result) for results in few.values() for result in results]
        if pruned if axis.unit is None else any(known):
            title = (
                f"Best {metric} at the target against {axis.title}: every run, mean, deviation, Pareto front"
            )
            draw = partial(_against, kinds=few, metric=metric, mode=mode, axis=axis)
            yield drawn(f"{prefix}{axis.name}", title, draw)


def _scaled(metric: str, value: float | None) -> float:
    [scaled] = finite([value], 100 if is_fraction(metric) else 1)
    return scaled


def _named(metric: str) -> str:
    return f"{label(metric)} (%)" if is_fraction(metric) else label(metric)


def _peaks(axes: "Axes", chart: Chart, kinds: Kinds, metric: str) -> None:
    for colour, (place, results) in zip(COLOURS, enumerate(kinds.values()), strict=False):
        for number, result in enumerate(results):
            x = place + (number - (len(results) - 1) / 2) * min(0.12, 0.7 / len(results))
            best, final = (_scaled(metric, result.measured(name)) for name in ("overall", "final"))
            axes.plot([x, x], [best, final], color=colour, lw=1)
            [peak] = axes.plot([x], [best], "o", color=colour, ms=5)
            [end] = axes.plot([x], [final], "_", color=colour, ms=9)
            assert result.overall is not None
            text = f"{result.run.name}: peak {shown(metric, result.overall.best)}"
            chart.mark(peak, f"{text} at epoch {result.overall.best_epoch}")
            chart.mark(end, f"{result.run.name}: final {shown(metric, result.final)}")
    axes.set_xticks(range(len(kinds)), [label(name).replace(" ", "\n") for name in kinds])
    axes.set_xlim(-0.6, len(kinds) - 0.4)
    axes.set_ylabel(f"{_named(metric)}: o peak, _ final")


def _against(axes: "Axes", chart: Chart, kinds: Kinds, metric: str, mode: str, axis: Axis) -> None:
    """Draw every run as a dot, means over seeds joined by a line with a band, and the front of the means."""
    points: list[tuple[str, _Point]] = []
    for colour, (name, results) in zip(COLOURS, kinds.items(), strict=False):
        lines = [line for line in _lines(chart, axes, results, metric, axis, colour) if line]
        for number, line in enumerate(lines):
            xs, ys = [p.x for p in line], [p.y for p in line]
            known = label(name) if number == 0 else None
            errors = [p.sd for p in line] if len(line) == 1 and line[0].n > 1 else None
            axes.errorbar(xs, ys, yerr=errors, color=colour, marker="_", ms=9, lw=1.4, capsize=3, label=known)
            low, high = ([p.y + sign * p.sd for p in line] for sign in (-1, 1))
            axes.fill_between(xs, low, high, color=colour, alpha=0.15, lw=0)
        points += [(name, point) for line in lines for point in line]
    best = [points[n] for n in front([(axis.sign * p.x, order(p.y, mode)) for _, p in points])]
    best.sort(key=lambda found: found[1].x)
    style = "steps-pre" if axis.sign < 0 else "steps-post"
    xs, ys = [p.x for _, p in best], [p.y for _, p in best]
    axes.plot(xs, ys, color=INK, lw=0.9, ls=":", drawstyle=style, label="Pareto front", zorder=1)
    for name, point in best:
        [ring] = axes.plot([point.x], [point.y], "o", mfc="none", mec=INK, ms=9, mew=0.9)
        value = shown(metric, point.y / 100 if is_fraction(metric) else point.y)
        chart.mark(ring, f"Pareto front: {name}, mean of {point.n}: {value}")
    _name(axes, axis, metric)


def _lines(
    chart: Chart, axes: "Axes", results: Sequence[Result], metric: str, axis: Axis, colour: str
) -> Iterator[list[_Point]]:
    """Yield the means of each configuration over its target sparsities, in order; draws every run."""
    found: dict[object, dict[float, list[tuple[float, float]]]] = {}
    for result in results:
        x = axis.value(result)
        best = result.chosen
        y = _scaled(metric, best.best if best else None)
        if x is None or y != y:
            continue
        [point] = axes.plot([x], [y], ".", color=colour, alpha=0.7)
        chart.mark(
            point, f"{result.run.name} (seed {result.seed}): {shown(metric, best.best if best else None)}"
        )
        others = frozenset(item for item in result.values.items() if item[0] not in ("seed", SPARSITY))
        found.setdefault(others, {}).setdefault(result.target or 0.0, []).append((x, y))
    for of_targets in found.values():
        means = []
        for values in of_targets.values():
            xs, ys = zip(*values, strict=True)
            sd = statistics.stdev(ys) if len(ys) > 1 else 0.0
            means.append(_Point(statistics.fmean(xs), statistics.fmean(ys), sd, len(ys)))
        yield sorted(means, key=lambda point: point.x)


def _name(axes: "Axes", axis: Axis, metric: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    if axis.unit is not None:
        axes.xaxis.set_major_formatter(EngFormatter(unit=axis.unit))
        axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel(axis.label)
    axes.set_ylabel(_named(metric))
