"""The page of a set of runs: peaks by optimizer, the runs as a table, and what failed."""

import re
import statistics
from collections.abc import Sequence, Set
from pathlib import Path

from peakpoint.base.errors import UserError
from peakpoint.checkpointing.metrics import shown
from peakpoint.trainer.reports import run_record, study
from peakpoint.trainer.reports.charts import drawing
from peakpoint.trainer.reports.charts import study as study_charts
from peakpoint.trainer.reports.charts.study import Kinds
from peakpoint.trainer.reports.sections import Cell, Page, Section, Table, bytes_cell
from peakpoint.trainer.reports.study import STOPPED, Result
from peakpoint.trainer.reports.study_table import duration, own_overrides, shared, spread_of

COLUMNS = {
    "objective": "objective",
    "at_target": "best at target",
    "overall": "best overall",
    "final": "final",
    "test": "test",
    "sparsity": "sparsity",
}
"""Values that have a column, and its heading."""
UNKNOWN = "unknown"
_SILENT = {study.KILLED: "its process is gone", "interrupted": "a signal ended it", "running": "it trains"}
"""Why a run of a state is not finished, where it says no more."""
MOST_KEYS = 8
"""Overrides that differ between the runs and have a column each; of more there is one column for all."""


def of_results(results: Sequence[Result], paths: Sequence[Path]) -> Page:
    """Return the page of a set of results, which `paths` were read for."""
    sections = []
    metrics = list(dict.fromkeys(result.metric for result in results if result.metric))
    for number, metric in enumerate(metrics):
        ranked = [r for r in study.ranked(results) if r.metric == metric and r.overall is not None]
        ranked = [r for r in ranked if r.state != STOPPED]
        if ranked:
            prefix = f"{_file_name(metric, number)}-" if len(metrics) > 1 else ""
            sections += _of_metric(ranked, metric, shared(results), prefix)
    sections.append(_runs(study.ranked(results)))
    if stopped := [r for r in results if r.state == STOPPED]:
        words = "Trials that were behind others, and when. They are in no mean and in no chart."
        sections.append(_reasons("Pruned by the search", words, stopped))
    others = [r for r in results if r.state not in ("finished", STOPPED) or r.overall is None]
    if others:
        words = "Runs that failed, diverged, did not finish or have no peak, and why."
        sections.append(_reasons("Failed and unfinished", words, others))
    name = paths[0].resolve().name if len(paths) == 1 else f"{len(results)} runs"
    states = [result.state for result in results]
    count = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    common = [word for word in results[0].overrides if word in shared(results)] if results else []
    all_have = [f"All have: {' '.join(common)}"] if common else []
    return Page(f"Study: {name}", [f"{len(results)} runs: {count}.", *all_have], sections)


def _file_name(metric: str, number: int) -> str:
    """Return a name for the files of a metric, which may be a stranger's."""
    return metric if re.fullmatch(r"[A-Za-z]\w{0,39}", metric, re.ASCII) else f"metric{number}"


def _reasons(title: str, words: str, results: Sequence[Result]) -> Section:
    rows = [[r.run.name, r.state, r.note or _SILENT.get(r.state), " ".join(r.overrides)] for r in results]
    return Section(title, [words], [Table(["run", "state", "why", "overrides"], rows, sortable=True)])


def _of_metric(results: Sequence[Result], metric: str, everywhere: Set[str], prefix: str) -> list[Section]:
    kinds: dict[str, list[Result]] = {}
    several = len({_choice(result, "model") for result in results}) > 1
    for result in results:
        names = [_choice(result, group) for group in (("model", "optimizer") if several else ("optimizer",))]
        kinds.setdefault(" ".join(names), []).append(result)
    title = "Peak and final by model and optimizer" if several else "Peak and final by optimizer"
    peaks = Section(title, tables=[_peaks(kinds, metric, "model, optimizer" if several else "optimizer")])
    peaks.words.append("Degradation is what the final epoch has lost since the peak of its own run.")
    if drawing.available():
        peaks.charts = list(study_charts.charts(kinds, metric, results[0].mode or "max", prefix))
    groups = study.grouped(results)
    if all(len(group.results) == 1 for group in groups):
        return [peaks]
    rows: list[list[object]] = []
    for group in groups:
        cells = [_mean(name, metric, group.spread(name)) for name in COLUMNS]
        epochs, seconds = map(group.spread, ("epochs", "seconds"))
        own = " ".join(word for word in group.overrides if word not in everywhere)
        rest = [f"{epochs.mean:g}" if epochs else None, _time(seconds.mean if seconds else None)]
        rows.append([own or "all", len(group.results), *cells, *rest])
    head = ["configuration", "n", *COLUMNS.values(), "epochs", "time"]
    means = Section("Means over seeds", tables=[Table(head, rows, sortable=True)])
    means.words.append("Mean, and the sample standard deviation where there are several seeds.")
    return [peaks, means]


def _peaks(kinds: Kinds, metric: str, heading: str) -> Table:
    rows: list[list[object]] = []
    for name, results in kinds.items():
        peaks = [result.overall for result in results if result.overall is not None]
        epochs = sorted({row.best_epoch for row in peaks})
        at = str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
        values = [[getattr(row, value) for row in peaks] for value in ("best", "final", "degradation")]
        rows.append([name, len(results), at, *(_mean(metric, metric, _spread(v)) for v in values)])
    return Table([heading, "n", "peak epoch", "peak", "final", "degradation"], rows, sortable=True)


def _spread(values: Sequence[float]) -> study.Spread | None:
    known = [value for value in values if value == value]
    sd = statistics.stdev(known) if len(known) > 1 else None
    return study.Spread(statistics.fmean(known), sd, len(known)) if known else None


def _mean(name: str, metric: str, spread: study.Spread | None) -> Cell | None:
    text = spread_of("sparsity" if name == "sparsity" else metric, spread)
    return Cell(text, spread.mean) if spread else None


def _time(seconds: float | None) -> Cell | None:
    return None if seconds is None else Cell(duration(seconds), seconds)


def _runs(results: Sequence[Result]) -> Section:
    """Return a row for each run, with a column for each override that is not the same in all."""
    keys = list(dict.fromkeys(key for result in results for key in result.values))
    keys = [key for key in keys if len({result.values.get(key) for result in results}) > 1]
    apart = len(keys) <= MOST_KEYS
    sizes = [name for name in ("bytes", "macs") if any(result.measured(name) for result in results)]
    rows: list[list[object]] = []
    for r, own in zip(results, own_overrides(results), strict=True):
        overrides = [_short(r.values.get(key)) for key in keys] if apart else [" ".join(own)]
        values = [(n, r.measured(n), "sparsity" if n == "sparsity" else r.metric or "") for n in COLUMNS]
        cells = [None if v is None else Cell(shown(unit, v), v) for _, v, unit in values]
        costs = [bytes_cell(r.bytes) if name == "bytes" else _count(r.macs) for name in sizes]
        rest = [r.epochs, _time(r.seconds), bytes_cell(r.peak_memory)]
        rows.append([r.run.name, *overrides, r.state, *cells, *costs, *rest])
    head = ["run", *(keys if apart else ["overrides"]), "state", *COLUMNS.values()]
    head += [{"bytes": "weights", "macs": "MACs"}[name] for name in sizes] + ["last epoch", "time", "memory"]
    words = ["The best objective first. The headings are buttons that sort."]
    return Section("Runs", words, [Table(head, rows, sortable=True)])


def _short(value: str | None) -> object:
    """Return an override's value, a number of many digits with four of them."""
    try:
        return Cell(f"{float(value):.4g}", float(value)) if value and len(value) > 8 else value
    except ValueError:
        return value


def _count(number: float | None) -> Cell | None:
    return None if number is None else Cell(f"{number / 1e6:.1f} M", number)


def _choice(result: Result, group: str) -> str:
    """Return what a run chose of a group, by its overrides or by its record."""
    if name := result.values.get(group):
        return name
    try:
        name = run_record.read_run(result.run)["attempts"][-1].get("choices", {}).get(group)
    except UserError:
        return UNKNOWN
    return name if isinstance(name, str) else UNKNOWN
