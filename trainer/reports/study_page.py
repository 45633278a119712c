"""The page of a set of runs: peaks by optimizer, the runs as a table, and what failed."""

import statistics
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from peakpoint.base.errors import UserError
from peakpoint.checkpointing.metrics import shown
from peakpoint.trainer.reports import run_record, study
from peakpoint.trainer.reports.charts import drawing
from peakpoint.trainer.reports.charts import study as study_charts
from peakpoint.trainer.reports.sections import Page, Section, Table
from peakpoint.trainer.reports.study import Result
from peakpoint.trainer.reports.study_table import own_overrides, shared

VALUES = ("objective", "at_target", "overall", "final", "test", "sparsity")
UNKNOWN = "unknown"


def of_results(results: Sequence[Result], paths: Sequence[Path]) -> Page:
    """Return the page of a set of results, which `paths` were read for."""
    sections = []
    for metric in dict.fromkeys(result.metric for result in results if result.metric):
        ranked = [r for r in study.ranked(results) if r.metric == metric and r.overall is not None]
        if ranked:
            sections += _of_metric(ranked, metric, shared(results))
    sections.append(_runs(study.ranked(results)))
    if failed := [r for r in results if r.state != "finished" or r.overall is None]:
        table = [[r.run.name, r.state, r.note or "-", " ".join(r.overrides)] for r in failed]
        words = ["Runs that did not finish, or have no peak, and why."]
        head = ["run", "state", "why", "overrides"]
        sections.append(Section("Failed and unfinished", words, [Table(head, table, sortable=True)]))
    name = paths[0].resolve().name if len(paths) == 1 else f"{len(results)} runs"
    states = {state: sum(r.state == state for r in results) for state in {r.state for r in results}}
    count = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
    common = [word for word in results[0].overrides if word in shared(results)] if results else []
    all_have = [f"All have: {' '.join(common)}"] if common else []
    return Page(f"Study: {name}", [f"{len(results)} runs: {count}.", *all_have], sections)


def _of_metric(results: Sequence[Result], metric: str, everywhere: Set[str]) -> list[Section]:
    by_optimizer: dict[str, list[Result]] = {}
    for result in results:
        by_optimizer.setdefault(_optimizer(result), []).append(result)
    peaks = Section("Peak and final by optimizer", tables=[_peaks(by_optimizer, metric)])
    peaks.words.append("Degradation is what the final epoch has lost since the peak of its own run.")
    if drawing.available():
        peaks.charts = list(study_charts.charts(by_optimizer, metric))
    head = ["configuration", "n", *VALUES, "epochs", "seconds"]
    rows: list[list[object]] = []
    for group in study.grouped(results):
        spreads = [(name, group.spread(name)) for name in VALUES]
        cells = [_mean(name, metric, s.mean, s.sd) if s else None for name, s in spreads]
        rest = [f"{s.mean:.1f}" if (s := group.spread(name)) else None for name in ("epochs", "seconds")]
        own = " ".join(word for word in group.overrides if word not in everywhere)
        rows.append([own or "all", len(group.results), *cells, *rest])
    means = Section("Means over seeds", tables=[Table(head, rows, sortable=True)])
    means.words.append("Mean, and the sample standard deviation where there are several seeds.")
    return [peaks, means]


def _peaks(by_optimizer: Mapping[str, Sequence[Result]], metric: str) -> Table:
    rows: list[list[object]] = []
    for name, results in by_optimizer.items():
        peaks = [result.overall for result in results if result.overall is not None]
        epochs = [row.best_epoch for row in peaks]
        lost = [row.degradation for row in peaks if row.degradation == row.degradation]
        finals = [row.final for row in peaks if row.final == row.final]
        values = [[row.best for row in peaks], finals, lost]
        cells = [
            _mean(metric, metric, statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else None)
            if v
            else None
            for v in values
        ]
        at = f"{min(epochs)} to {max(epochs)}" if len(set(epochs)) > 1 else str(epochs[0])
        rows.append([name, len(results), at, *cells])
    return Table(["optimizer", "n", "peak epoch", "peak", "final", "degradation"], rows, sortable=True)


def _mean(name: str, metric: str, mean: float, sd: float | None) -> str:
    unit = "sparsity" if name == "sparsity" else metric
    return shown(unit, mean) + ("" if sd is None else f" ± {shown(unit, sd)}")


def _runs(results: Sequence[Result]) -> Section:
    head = ["run", "state", *VALUES, "epochs", "seconds", "peak MB", "overrides"]
    rows: list[list[object]] = []
    for r, own in zip(results, own_overrides(results), strict=True):
        metric = r.metric or ""
        cells = [shown("sparsity" if n == "sparsity" else metric, r.measured(n)) for n in VALUES]
        seconds = None if r.seconds is None else f"{r.seconds:.1f}"
        memory = None if r.peak_memory is None else f"{r.peak_memory / 1e6:.0f}"
        rows.append([r.run.name, r.state, *cells, r.epochs, seconds, memory, " ".join(own)])
    words = ["The best objective first. A click on a heading sorts."]
    return Section("Runs", words, [Table(head, rows, sortable=True)])


def _optimizer(result: Result) -> str:
    """Return the optimizer that a run chose, by its overrides or by its record."""
    if name := result.values.get("optimizer"):
        return name
    try:
        name = run_record.read_run(result.run)["attempts"][-1].get("choices", {}).get("optimizer")
    except UserError:
        return UNKNOWN
    return name if isinstance(name, str) else UNKNOWN
