"""The metrics of a run, read from metrics.jsonl: evaluations, losses, tests, and the peak among them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.checkpointing.policies.sparsity import SLACK
from peakpoint.checkpointing.policy import order, ranked
from peakpoint.checkpointing.storage import foreign


@dataclass(frozen=True)
class History:
    """The rows of metrics.jsonl by kind, oldest first; `unreadable` counts torn lines but the last.

    `seconds` are those of the run at each evaluation, of all attempts; earlier versions recorded none.
    """

    evals: list[EvalEnd]
    train: list[dict[str, Any]]
    tests: dict[str, dict[str, Any]]
    saves: list[dict[str, float]]
    unreadable: int
    seconds: list[float] = field(default_factory=list)

    @property
    def skipped(self) -> int:
        """Return the number of steps that were skipped, as their loss or gradients were not finite."""
        return int(self.train[-1]["skipped"]) if self.train else 0


@dataclass(frozen=True)
class PeakRow:
    """Peak against final within a scope; `final` is NaN when the last value was not finite.

    `best_step` is the step of the peak, `degradation` what was lost since, in units of the metric and not
    negative. `sparsity` is that of the prunable weights at the peak.
    """

    scope: str
    best_epoch: int
    best: float
    final: float
    degradation: float
    sparsity: float
    best_step: int


def read_history(run: Path) -> History:
    """Read `<run>/metrics.jsonl` as `read_rows`. Raises UserError also when it holds no evaluation."""
    history = read_rows(run)
    if not history.evals:
        raise UserError(f"{run / 'metrics.jsonl'} holds no evaluation yet: there is nothing to report.")
    return history


def read_rows(run: Path) -> History:
    """Read `<run>/metrics.jsonl`. Raises UserError when it is missing or has another shape.

    A line torn by a kill does not count. A run resumed from an older checkpoint takes steps again; then the
    rows that it had written for them do not count either.
    """
    path = run / "metrics.jsonl"
    try:
        lines = list(bounded.lines(path))
    except CheckpointError as error:
        raise UserError(f"{error} Name the directory of a run.{foreign.described(run)}") from None
    history = History([], [], {}, [], 0)
    unreadable = 0
    for number, line in enumerate(lines, 1):
        try:
            row = bounded.json_value(line)
        except ValueError:
            unreadable += number < len(lines)
            continue
        try:
            _add(history, row)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UserError(
                f"{path}, line {number} is not a row of metrics ({type(error).__name__}: {error})."
            ) from None
    return replace(history, unreadable=unreadable)


def _add(history: History, row: dict[str, Any]) -> None:
    if row["kind"] == "eval":
        metrics = {name: float(value) for name, value in row["metrics"].items()}
        event = EvalEnd(
            int(row["epoch"]),
            int(row["step"]),
            metrics,
            float(row["sparsity"]),
            row["mask_version"],
            row.get("sparsity_of_all"),
            layers={name: float(value) for name, value in row.get("layers", {}).items()} or None,
        )
        while history.evals and history.evals[-1].step >= event.step:
            history.evals.pop()
        history.evals.append(event)
        if (seconds := row.get("seconds")) is not None:
            history.seconds.append(float(seconds))
    elif row["kind"] == "train":
        plain = {name: float(row[name]) for name in ("step", "loss", "lr")}
        plain["skipped"] = int(row.get("skipped", 0))
        for name in ("accuracy", "grad_norm"):  # earlier versions have neither
            plain[name] = math.nan if row.get(name) is None else float(row[name])
        while history.train and history.train[-1]["step"] >= plain["step"]:
            history.train.pop()
        history.train.append(plain)
    elif row["kind"] == "test":
        metrics = {name: float(value) for name, value in row["metrics"].items()}
        position = {name: int(row[name]) for name in ("epoch", "step")}
        # Rows of earlier versions have neither.
        more = {name: n if type(n := row.get(name)) is int else None for name in ("samples", "bytes")}
        more["file"] = row.get("file")
        history.tests[str(row["which"])] = {**position, "metrics": metrics, **more}
    elif row["kind"] == "save":
        history.saves.append({name: float(row.get(name, 0)) for name in ("bytes", "stall_s", "total_s")})


def peak_rows(evals: Sequence[EvalEnd], metric: str, mode: str, targets: Iterable[float]) -> list[PeakRow]:
    """Return peak against final over all evaluations, then over those that reached each sparsity target.

    A scope without a finite value has no row. Of equal values the earliest epoch is the peak; `final` is the
    last evaluation of the scope, whatever its value.
    """
    scopes = [("overall", list(evals))]
    for target in sorted({round(t, 6) for t in targets if t > 0}):
        name = f"sparsity >= {target:.2f}" if round(target, 2) == target else f"sparsity >= {target:g}"
        scopes.append((name, [e for e in evals if e.sparsity >= target - SLACK]))
    rows = []
    for scope, members in scopes:
        values = [(value, e) for e in members if (value := ranked(e.metrics, metric)) is not None]
        if not values:
            continue
        best, peak = max(values, key=lambda pair: (order(pair[0], mode), -pair[1].step))
        last = ranked(members[-1].metrics, metric)
        final = math.nan if last is None else last
        lost = best - final if mode == "max" else final - best
        rows.append(PeakRow(scope, peak.epoch, best, final, lost, peak.sparsity, peak.step))
    return rows


def objective(evals: Sequence[EvalEnd], metric: str, mode: str, target: float) -> float | None:
    """Return the value that a run is ranked by: the best at its target sparsity, else the best of all.

    None when no evaluation has a finite value.
    """
    rows = peak_rows(evals, metric, mode, [target])
    return rows[-1].best if rows else None


def peaks(history: History, metric: str, mode: str, targets: Iterable[float]) -> list[PeakRow]:
    """Return the rows of peak_rows. Raises UserError for a metric without a finite value."""
    rows = peak_rows(history.evals, metric, mode, targets)
    if not rows:
        names = ", ".join(sorted({name for e in history.evals for name in e.metrics}))
        raise UserError(f"No evaluation has a finite {metric}; the metrics of this run are: {names}.")
    return rows
