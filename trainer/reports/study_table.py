"""The results of a set of runs as tables: for people, and as table.csv."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from peakpoint.base.disk_space import in_words
from peakpoint.base.files import write_atomic
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.metrics import shown
from peakpoint.trainer.reports.study import Group, Result, Spread, grouped, ranked

CSV = "table.csv"
_RUNS = (
    *("run", "overrides", "state", "target", "best at target", "best overall", "final", "test", "sparsity"),
    *("epochs", "time", "memory"),
)
_MEANS = ("over seeds", "n", "at target", "overall", "final", "test", "sparsity", "epochs", "time", "memory")


def print_study(console: Console, results: Sequence[Result], title: str = "") -> None:
    """Print a row for each run, the best objective first, then means over seeds, and notes of what failed."""
    found = ranked(results)
    own = own_overrides(found)
    names = _names(found)
    rows = [[name, " ".join(words), *_cells(r)] for name, words, r in zip(names, own, found, strict=True)]
    console.table(_RUNS, rows, title=title, words=["overrides", "state"])
    groups = grouped(found)
    if any(len(group.results) > 1 for group in groups):
        console.say("")
        everywhere = shared(found)
        console.table(
            _MEANS,
            [[" ".join(w for w in g.overrides if w not in everywhere) or "all", *_means(g)] for g in groups],
        )
    notes = [(name, result) for name, result in zip(names, found, strict=True) if result.note]
    for name, result in notes:
        console.say(f"{name} {result.outcome}")


def _names(results: Sequence[Result]) -> list[str]:
    """Return the last part of each run's path, or the whole path where two runs share it."""
    names = [result.run.name for result in results]
    return names if len(set(names)) == len(names) else [str(result.run) for result in results]


def shared(results: Sequence[Result]) -> set[str]:
    """Return the overrides that all runs have, where there are several."""
    known = [set(result.overrides) for result in results if result.overrides]
    return set.intersection(*known) if len(known) > 1 else set()


def own_overrides(results: Sequence[Result]) -> list[list[str]]:
    """Return the overrides of each run without those that all have."""
    everywhere = shared(results)
    return [[word for word in result.overrides if word not in everywhere] for result in results]


def _cells(result: Result) -> list[str]:
    metric = result.metric or ""
    values = [result.measured(name) for name in ("at_target", "overall", "final", "test")]
    return [
        result.state,
        f"{result.target:g}" if result.target else "",
        *("" if value is None else shown(metric, value) for value in values),
        "" if result.sparsity is None else shown("sparsity", result.sparsity),
        "" if result.epochs is None else str(result.epochs),
        "" if result.seconds is None else duration(result.seconds),
        "" if result.peak_memory is None else in_words(result.peak_memory),
    ]


def _means(group: Group) -> list[str]:
    metric = group.metric or ""
    spreads = [group.spread(name) for name in ("at_target", "overall", "final", "test")]
    sparsity, epochs, seconds, memory = map(group.spread, ("sparsity", "epochs", "seconds", "peak_memory"))
    counted = group.spread("objective")
    return [
        str(counted.n if counted else 0),
        *(spread_of(metric, spread) for spread in spreads),
        spread_of("sparsity", sparsity),
        f"{epochs.mean:g}" if epochs else "",
        duration(seconds.mean) if seconds else "",
        in_words(round(memory.mean)) if memory else "",
    ]


def spread_of(metric: str, spread: Spread | None) -> str:
    """Return a mean with its standard deviation for people; without one for a single value."""
    if spread is None:
        return ""
    mean = shown(metric, spread.mean)
    return mean if spread.sd is None else f"{mean} ± {shown(metric, spread.sd)}"


def duration(seconds: float) -> str:
    """Return a time for people: 12.3 s, or hours, minutes and seconds."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def write_csv(path: Path, results: Iterable[Result]) -> None:
    """Replace a CSV file: a row for each run with its results, and a column for each key that was set.

    Texts that a spreadsheet would take for a formula are quoted.
    """
    found = ranked(results)
    keys = list(dict.fromkeys(key for result in found for key in result.values))
    rows = [{key: result.values.get(key, "") for key in keys} | _row(result) for result in found]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    for cells in ([*rows[0]] if rows else [], *(row.values() for row in rows)):
        table.writerow(map(_literal, cells))
    write_atomic(path, text.getvalue())


def _row(result: Result) -> dict[str, object]:
    at_target, overall = result.at_target, result.overall
    return {
        "run": result.run.name,
        "overrides": " ".join(result.overrides),
        "state": result.state,
        "metric": result.metric,
        "objective": result.measured("objective"),
        "target": result.target,
        "at_target": result.measured("at_target"),
        "at_target_epoch": at_target.best_epoch if at_target else None,
        "overall": result.measured("overall"),
        "overall_epoch": overall.best_epoch if overall else None,
        "overall_sparsity": overall.sparsity if overall else None,
        "final": result.measured("final"),
        "test_set": result.measured("test"),
        "sparsity": result.measured("sparsity"),
        "epoch": result.epochs,
        "seconds": result.seconds,
        "peak_memory": result.peak_memory,
        "note": result.note,
    }


def _literal(cell: object) -> object:
    """Return a cell that a spreadsheet takes as it is: a text that looks like a formula gets a quote."""
    if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(cell):
        return f"'{cell}"
    return cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
