"""The results of a set of runs: one each, and their means over seeds. Reads what the runs wrote; no torch.

A sweep is the set of its jobs. What a run's files say is bounded and escaped where it is printed, and a run
that cannot be read is a result of state `unreadable`, so that one bad folder does not hide the others.
"""

import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing.policies.early_stopping import DIVERGED
from peakpoint.checkpointing.policy import order
from peakpoint.checkpointing.storage import foreign
from peakpoint.trainer.config import recorded
from peakpoint.trainer.config.hydra_overrides import OWN, split, unquote
from peakpoint.trainer.reports import costs, run_record
from peakpoint.trainer.reports.history import PeakRow, objective, peak_rows, read_history

MOST = 10_000
"""Runs in a set."""
KILLED, STOPPED, UNREADABLE = "killed", "pruned", "unreadable"
"""States beside those of run_record: its process is gone, a search ended it, its files say nothing."""
PRUNED = "pruned by the search"
"""The beginning of the reason for which a search ended a run."""
ENDINGS = {PRUNED: STOPPED, DIVERGED: DIVERGED}
"""How the reason of a finished run begins -> its state in a table, where it is not that of a whole run."""
_MARKS = (run_record.RUN, run_record.STATUS, run_record.METRICS)
MEASURED = ("at_target", "overall", "final", "test", "sparsity", "epochs", "seconds", "peak_memory")
"""Values of a result that have a mean over seeds, beside the objective."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a run. None stands for what is not known, or not yet.

    `overrides` are the words of its latest attempt, `values` the same by key, as typed. `metric` is the one
    that the run monitored and `mode` which value is better. `at_target` is the peak among the evaluations
    that reached `target`, the sparsity to prune to; None also where none did or nothing is pruned. `overall`
    is the peak of all; `final` the last evaluation, `test` the selected checkpoint on the test set;
    `sparsity` that of the prunable weights at the end. `seconds` are those of all attempts, `peak_memory` is
    in bytes. `bytes` is the size of the weights at the `chosen` peak, with the zeros packed away, and `macs`
    counts the multiply-accumulates of those that are not zero, for an image. `objective` is the value that
    the run is ranked by: the peak at the target sparsity, where it was reached, else that of all evaluations.
    """

    run: Path
    overrides: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    state: str = UNREADABLE
    note: str = ""
    metric: str | None = None
    mode: str | None = None
    target: float | None = None
    seed: int | None = None
    at_target: PeakRow | None = None
    overall: PeakRow | None = None
    final: float | None = None
    test: float | None = None
    sparsity: float | None = None
    epochs: int | None = None
    seconds: float | None = None
    peak_memory: int | None = None
    objective: float | None = None
    bytes: int | None = None
    macs: float | None = None

    @property
    def chosen(self) -> PeakRow | None:
        """Return the peak at the target, of a run that is not pruned that of all evaluations."""
        return self.at_target if self.target else self.overall

    @property
    def outcome(self) -> str:
        """Return the state and the note, which may begin with it."""
        return self.note if self.note.startswith(self.state) else f"{self.state}: {self.note}"

    def measured(self, name: str) -> float | None:
        """Return a value by its name, that of a peak for `at_target` and `overall`; None if not finite."""
        value = getattr(self, name)
        value = value.best if isinstance(value, PeakRow) else value
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Spread:
    """The mean of n values and their sample standard deviation, None for one value."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Group:
    """The results that differ in the seed alone; `overrides` are what they share, without the seed."""

    overrides: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def metric(self) -> str | None:
        """Return the metric that its runs monitored."""
        return next((r.metric for r in self.results if r.metric), None)

    def spread(self, name: str) -> Spread | None:
        """Return mean, deviation and number of a value by its name; None where no finished run has it."""
        finished = (result for result in self.results if result.state == "finished")
        values = [value for result in finished if (value := result.measured(name)) is not None]
        if not values:
            return None
        return Spread(
            statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
        )


def read_results(paths: Iterable[Path]) -> list[Result]:
    """Return the results of runs and of the jobs of sweeps, each once, in order. Raises UserError."""
    runs: dict[Path, Path] = {}
    for path in paths:
        for run in [path] if is_run(path) else jobs(path):
            runs.setdefault(run.resolve(), run)
    if len(runs) > MOST:
        raise UserError(f"{len(runs)} runs are too many for one table: name at most {MOST}.")
    return [read_result(run) for run in runs.values()]


def is_run(path: Path) -> bool:
    """Return whether a directory is that of a run, also of one that failed before it began."""
    return any(os.path.lexists(path / name) for name in _MARKS)


def jobs(folder: Path) -> list[Path]:
    """Return the runs directly in a folder, by number. Raises UserError when there is none."""
    if not folder.is_dir():
        kind = foreign.described(folder)
        raise UserError(f"{folder} is not a directory: name a run or the folder of a sweep.{kind}")
    found = [path for path in folder.iterdir() if path.is_dir() and is_run(path)]
    if not found:
        raise UserError(f"{folder} holds neither a run nor the runs of a sweep.")
    return sorted(found, key=_number)


def _number(run: Path) -> tuple[int, str]:
    return (int(run.name) if run.name.isdecimal() and len(run.name) < 10 else -1, run.name)


def read_result(run: Path) -> Result:
    """Return the result of a run; one that cannot be read has the reason in `note`."""
    words = _overrides(run)
    known: dict[str, Any] = {
        "run": run,
        "overrides": words,
        "values": {key: unquote(value) for key, value in map(split, words) if key is not None},
    }
    try:
        bounded.refuse_links(run)
        status = run_record.read_status(run)
        reason = str(status.get("reason", ""))
        known |= {"state": _state(status), "note": str(status.get("error", ""))}
        for beginning, state in ENDINGS.items():
            if known["state"] == "finished" and reason.startswith(beginning):
                known |= {"state": state, "note": reason}
        known |= {name: run_record.number(status, name) for name in ("seconds", "peak_memory")}
        known["seed"] = _seed(run)
        metric, mode, (target, *_) = run_record.watched(run)
        known |= {"metric": metric, "mode": mode, "target": target}
        history = read_history(run)
        # A run that was killed, or still trains, recorded in its status only how it began.
        timed = [known["seconds"] or 0.0, *filter(math.isfinite, history.seconds)]
        known["seconds"] = max(timed) or None
    except (UserError, CheckpointError) as error:
        return Result(**{**known, "note": known.get("note") or str(error)})
    rows = peak_rows(history.evals, metric, mode, [target])
    if not rows:
        note = known["note"] or f"no evaluation has a finite {metric}"
        return Result(**{**known, "note": note, "epochs": history.evals[-1].epoch})
    overall, *at_target = rows
    tested = history.tests.get("selected", {}).get("metrics", {})
    if target > 0 and not at_target and known["state"] == "finished":
        known["note"] = known["note"] or f"sparsity {target:g} was not reached"
    chosen = (at_target[0] if at_target else None) if target > 0 else overall
    return Result(
        **known,
        at_target=at_target[0] if at_target else None,
        overall=overall,
        bytes=costs.stored(history, chosen) if chosen else None,
        macs=costs.macs(run, history, chosen) if chosen else None,
        final=overall.final,
        test=tested.get(metric),
        sparsity=history.evals[-1].sparsity,
        epochs=history.evals[-1].epoch,
        objective=objective(history.evals, metric, mode, target),
    )


def _overrides(run: Path) -> tuple[str, ...]:
    """Return the overrides of a run's latest attempt; none where they cannot be read.

    A job that failed before it began has no record of an attempt, and left its configuration alone.
    """
    try:
        words = recorded.overrides(run_record.read_run(run)["attempts"][-1])
    except UserError:
        try:
            found = bounded.yaml_value(run / run_record.HYDRA / "overrides.yaml")
        except CheckpointError:
            return ()
        words = [word for word in found if isinstance(word, str)] if isinstance(found, list) else []
    return tuple(word for word in words[: recorded.MOST] if split(word)[0] not in OWN)


def _state(status: Mapping[str, Any]) -> str:
    """Return the state in a status, `killed` for a run whose process on this machine is gone."""
    state: str = status["state"]
    if state != "running" or status.get("host") != run_record.holder()["host"]:
        return state
    pid = status.get("pid")
    if type(pid) is int and 0 < pid < 1 << 31:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return KILLED
        except OSError:
            pass
    return state


def _seed(run: Path) -> int | None:
    found = run_record.read_run(run)
    config = found.get(run_record.NOW, found.get("config", {}))
    seed = config.get("seed")
    return seed if type(seed) is int else None


def ranked(results: Iterable[Result]) -> list[Result]:
    """Return results with the best objective first; those without one stay in order at the end."""
    return sorted(results, key=lambda result: _rank(result.metric, result.mode, result.measured("objective")))


def _rank(metric: str | None, mode: str | None, value: float | None) -> tuple[bool, str, float]:
    if metric is None or mode is None or value is None:
        return True, "", 0.0
    return False, metric, -order(value, mode)


def grouped(results: Iterable[Result]) -> list[Group]:
    """Return the results in groups that differ in the seed alone, the best mean objective first."""
    members: dict[frozenset[tuple[str, str]], list[Result]] = {}
    for result in results:
        key = frozenset(item for item in result.values.items() if item[0] != "seed")
        members.setdefault(key, []).append(result)
    groups = [
        Group(tuple(word for word in found[0].overrides if split(word)[0] != "seed"), tuple(found))
        for found in members.values()
    ]
    return sorted(groups, key=_rank_of_group)


def _rank_of_group(group: Group) -> tuple[bool, str, float]:
    spread = group.spread("objective")
    mode = next((result.mode for result in group.results if result.mode), None)
    return _rank(group.metric, mode, spread.mean if spread else None)


def facts(results: Sequence[Result]) -> dict[str, Any]:
    """Return results and groups as plain values."""
    return {
        "results": [{**asdict(result), "run": str(result.run)} for result in ranked(results)],
        "groups": [
            {
                "overrides": group.overrides,
                "runs": [str(result.run) for result in group.results],
                **{
                    name: asdict(spread) if (spread := group.spread(name)) else None
                    for name in ("objective", *MEASURED)
                },
            }
            for group in grouped(results)
        ],
    }
