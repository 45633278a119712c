"""The page of one run: what its files hold, as sections. A file that is missing or broken is named there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peakpoint.base import bounded
from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError, PeakpointError, UserError
from peakpoint.checkpointing.metrics import shown
from peakpoint.checkpointing.policy import ranked
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.manifest import TIERS, Manifest
from peakpoint.trainer.reports import run_record, study
from peakpoint.trainer.reports.charts import drawing, run
from peakpoint.trainer.reports.history import History, peak_rows, read_rows
from peakpoint.trainer.reports.sections import Page, Section, Table, bytes_cell
from peakpoint.trainer.reports.tables import incomparable, peak_table, test_table

WORST = 10
"""Classes in the table of the worst."""
MOST_CELLS = 4_000_000
"""Entries of a confusion matrix."""
PLACES = {"metric": "accuracy", "loss": "accuracy", "lr": "steps", "grad_norm": "steps", "stalls": "storage"}


def of_run(directory: Path) -> Page:
    """Return the page of a run. Raises UserError when nothing in it can be read."""
    bounded.refuse_links(directory)
    result = study.read_result(directory)
    metric, mode, targets, problems = "accuracy", "max", [0.0], []
    try:
        metric, mode, targets = run_record.watched(directory)
    except UserError as error:
        problems.append(str(error))
    try:
        history = read_rows(directory)
    except UserError as error:
        problems.append(str(error))
        history = History([], [], {}, [], 0)
    kept = _kept(directory, problems)
    drawn = list(run.charts(history, metric, mode, kept)) if drawing.available() else []
    charts: dict[str, list[drawing.Chart]] = {}
    for chart in drawn:
        charts.setdefault(PLACES.get(chart.name, "sparsity"), []).append(chart)
    sections = [
        _peaks(history, metric, mode, targets, result),
        Section("Learning curves", charts=charts.get("accuracy", [])),
        Section("Sparsity", charts=charts.get("sparsity", [])),
        Section("Steps", charts=charts.get("steps", [])),
        _classes(directory, history, problems),
        _storage(directory, history, kept, metric, charts.get("storage", [])),
        _record(directory),
    ]
    state = f"State: {result.state}." + (f" {result.note}" if result.note else "")
    summary = [f"Run {directory.resolve().name}, in {directory.resolve()}.", state, *problems]
    if result.overrides:
        summary.insert(1, f"Overrides: {' '.join(result.overrides)}")
    return Page(f"Run {directory.resolve().name}", summary, [s for s in sections if _has_content(s)])


def _has_content(section: Section) -> bool:
    return bool(section.words or section.tables or section.charts or section.texts)


def _kept(directory: Path, problems: list[str]) -> list[Manifest]:
    root = directory / "checkpoints"
    try:
        return [m for m in listing.own(root, listing.manifests(root)) if (root / m.file).exists()]
    except (PeakpointError, OSError) as error:
        problems.append(str(error))
        return []


def _peaks(
    history: History, metric: str, mode: str, targets: Sequence[float], result: study.Result
) -> Section:
    """Return peak against final, overall and at each target, and the results on the test set."""
    section = Section("Peak and final")
    rows = peak_rows(history.evals, metric, mode, targets)
    if not rows:
        section.words.append(f"No evaluation has a finite {metric} yet.")
        return section
    section.tables.append(Table(*peak_table(history, rows, metric)))
    if history.tests:
        section.tables.append(Table(*test_table(history)))
    section.words += incomparable(rows)
    costs = [f"a size of {in_words(result.bytes)} without its zeros"] if result.bytes else []
    costs += [f"{result.macs:,.0f} multiply-accumulates for an image"] if result.macs else []
    if costs:
        section.words.append(f"The best network at the target has {' and '.join(costs)}.")
    if history.skipped:
        section.words.append(f"Steps that were skipped, as they were not finite: {history.skipped}.")
    return section


def _classes(directory: Path, history: History, problems: list[str]) -> Section:
    """Return the confusion matrix and the worst classes; nothing when the test is not that of the record."""
    section = Section("Classes")
    path = directory / run_record.CONFUSION
    try:
        found = bounded.read_json(path)
        which, cells, classes = found["which"], found["cells"], [str(name) for name in found["classes"]]
        if len(cells) > MOST_CELLS or not all(_is_cell(cell, len(classes)) for cell in cells):
            raise ValueError("cells")
        tested = history.tests.get(which)
        if not tested or tested["step"] != found["step"]:
            return section
    except bounded.Absent:
        return section
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        problems.append(f"{path} is not a confusion matrix ({type(error).__name__}).")
        return section
    section.words.append(f"Of the test set, by the {which} weights of epoch {tested['epoch']}.")
    section.tables.append(_worst(cells, classes))
    if drawing.available() and cells:
        section.charts.append(run.confusion(cells, classes))
    return section


def _is_cell(cell: Any, classes: int) -> bool:
    return (
        isinstance(cell, list)
        and len(cell) == 3
        and all(type(value) is int for value in cell)
        and 0 <= cell[0] < classes
        and 0 <= cell[1] <= classes
        and 0 < cell[2] < 1 << 40
    )


def _worst(cells: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    """Return the classes of the lowest recall, each with the class that it is most often taken for."""
    rows: dict[int, dict[int, int]] = {}
    for true, predicted, count in cells:
        rows.setdefault(true, {})[predicted] = count
    names = [*classes, "no class (NaN)"]
    table = []
    for true, counts in rows.items():
        total, right = sum(counts.values()), counts.get(true, 0)
        wrong = max((n, p) for p, n in counts.items() if p != true) if len(counts) > (right > 0) else None
        taken = f"{names[wrong[1]]} ({wrong[0]})" if wrong else None
        table.append((right / total, names[true], total, taken))
    worst = sorted(table, key=lambda row: row[0])[:WORST]
    return Table(
        ["worst classes", "recall", "images", "most often taken for"],
        [[name, f"{share:.2%}", total, taken] for share, name, total, taken in worst],
        sortable=True,
    )


def _storage(
    directory: Path, history: History, kept: Sequence[Manifest], metric: str, charts: list[drawing.Chart]
) -> Section:
    """Return the bytes of each tier, what saving cost, and what is kept and why."""
    section = Section("Storage", charts=charts)
    root, rows = directory / "checkpoints", []
    for tier in TIERS:
        files = [path for path in (root / tier).glob("*") if path.is_file() and not path.is_symlink()]
        sizes = {path.stat().st_ino: path.stat().st_size for path in files}
        shared = sum(path.stat().st_size for path in files) - sum(sizes.values())
        count = sum(path.suffix != ".json" for path in files)
        rows.append([tier, count, bytes_cell(sum(sizes.values())), bytes_cell(shared)])
    section.tables.append(Table(["tier", "checkpoints", "size", "saved by links"], rows))
    if saves := history.saves:
        waited = sum(save["stall_s"] for save in saves)
        longest = max(save["stall_s"] for save in saves)
        section.words.append(
            f"Saves: {len(saves)}; training waited {waited:.2f} s for them in all, {longest:.3f} s at most."
        )
    if kept:
        rows = [
            [
                m.file,
                m.epoch,
                shown(metric, ranked(m.metrics, metric)),
                shown("sparsity", m.sparsity),
                bytes_cell(m.bytes),
                "; ".join(m.reasons),
            ]
            for m in sorted(kept, key=lambda m: (m.tier, m.sequence))
        ]
        head = ["kept", "epoch", metric, "sparsity", "size", "why"]
        section.tables.append(Table(head, rows, sortable=True))
    return section


def _record(directory: Path) -> Section:
    """Return commit, packages, hardware, attempts and configuration of the record."""
    section = Section("Record")
    try:
        found = run_record.read_run(directory)
    except UserError as error:
        section.words.append(str(error))
        return section
    facts: list[list[object]] = [["run", found.get("run")], ["commit", found.get("git_commit")]]
    facts.append(["uncommitted changes", "yes" if found.get("git_diff") else "no"])
    facts += [["python", found.get("python")], *_pairs(found.get("packages"))]
    facts += [*_pairs(found.get("hardware")), *_pairs(found.get("data"))]
    for each in found["attempts"]:
        facts.append([f"attempt {each.get('number')}, {each.get('started')}", each.get("command")])
    section.tables.append(Table(["fact", "value"], [[name, _text(value)] for name, value in facts]))
    config = found.get(run_record.NOW, found.get("config", {}))
    section.texts.append(("Configuration", json.dumps(config, indent=2, ensure_ascii=False)))
    if isinstance(diff := found.get("git_diff"), str) and diff:
        section.texts.append(("Uncommitted changes of the code", diff))
    return section


def _pairs(value: Any) -> list[list[object]]:
    return [[name, each] for name, each in value.items()] if isinstance(value, Mapping) else []


def _text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)
