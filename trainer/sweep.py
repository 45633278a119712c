"""A sweep: a failed job neither hides nor stops it, and it ends with a table of its jobs."""

import contextlib
import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError, PeakpointError, UserError
from peakpoint.base.lock import one_writer
from peakpoint.base.terminal import Console, say_error
from peakpoint.checkpointing.metrics import shown
from peakpoint.trainer.config import hydra_overrides, unheeded
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.listeners.retrying_file import open_logs
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.history import peak_rows, read_history
from peakpoint.trainer.resume.plan import Plan, last_attempt
from peakpoint.trainer.signals import Ended

_printed: set[str] = set()
"""Lines that were printed for an earlier job of this sweep."""


def run_job(cfg: DictConfig, directory: Path) -> int:
    """Run one job; whatever goes wrong with it is recorded in its directory and the sweep goes on.

    Raises Ended when a signal ended the job: it is meant for the whole sweep.
    """
    overrides = run_record.typed()
    Console().say(f"job {HydraConfig.get().job.num}: {' '.join(overrides)}")
    try:
        run_record.refuse_passwords(cfg)
        plan = Plan([], typed=hydra_overrides.keys(overrides))
        config = checked(cfg)
        for line in unheeded.idle(cfg, config, plan.typed):  # it may be typed for other jobs
            if line not in _printed:
                _printed.add(line)
                Console().say(line)
        from peakpoint.trainer.run import run  # it brings torch

        code = run(config, cfg, plan, directory)
    except Exception as error:  # not even a bug in one job ends the others
        say_error(_failed(cfg, directory, error))
        return 1
    if code > 128:
        raise Ended(code - 128)
    return code


def _failed(cfg: DictConfig, directory: Path, error: Exception) -> str:
    """Record a failure in the job's directory; returns the sentence to print.

    A run that has begun recorded it itself, and the directory of another run is left alone.
    """
    sentence = run_record.sentence(error)
    with contextlib.suppress(CheckpointError, OSError), one_writer(directory):
        if not any(os.path.lexists(directory / name) for name in (run_record.RUN, run_record.STATUS)):
            open_logs()
            run_record.log_failure(error)
            run_record.set_status(directory, "failed", error=sentence)
            run_record.save_config(directory, cfg)
    if isinstance(error, PeakpointError | OSError):
        return sentence
    return f"{sentence}; {directory / 'train.log'} has the traceback"


def print_table(folder: Path) -> None:
    """Print a table of the jobs in a sweep's folder: overrides, state, best, final and test value.

    The values are at the target sparsity where it was reached, else of the whole run.
    """
    runs = sorted((p.parent for p in folder.glob(f"*/{run_record.STATUS}")), key=_number)
    if not runs:
        return
    overrides = {run: _overrides(run) for run in runs}
    shared = set.intersection(*map(set, overrides.values())) if len(runs) > 1 else set()
    columns = ["job", "overrides", "state", "sparsity", "peak at", "best", "final", "test"]
    rows, notes = [], []
    for run in runs:
        own = " ".join(o for o in overrides[run] if o not in shared)
        state, cells, note = _result(run)
        rows.append([run.name, own, state, *(cells or [""] * 5)])
        if note:
            notes.append(f"job {run.name} {state}: {note}")
    console = Console()
    console.table(columns, rows, title=str(folder), words=["overrides", "state", "sparsity"])
    for note in notes:
        console.say(note)


def _number(run: Path) -> tuple[int, str]:
    return (int(run.name) if run.name.isdigit() else -1, run.name)


def _result(run: Path) -> tuple[str, list[str], str]:
    """Return the state of a job, the cells of its row after that, and a note where there is more to say."""
    state = "unreadable"
    try:
        status = run_record.read_status(run)
        state = status["state"]
        if state == "failed":
            return state, [], str(status.get("error", ""))
        metric, mode, (target, *_) = run_record.watched(run)
        history = read_history(run)
    except UserError as error:
        return state, [], str(error)
    rows = peak_rows(history.evals, metric, mode, [target])
    if not rows:
        return state, [], f"no evaluation has a finite {metric}"
    row, tested = rows[-1], history.tests.get("selected")
    test = shown(metric, tested["metrics"][metric]) if tested and metric in tested["metrics"] else ""
    values = (shown(metric, row.best), shown(metric, row.final), test)
    return state, [row.scope.removeprefix("sparsity "), str(row.best_epoch), *values], ""


def _overrides(run: Path) -> list[str]:
    """Return the overrides of a job; none where they cannot be read.

    A job that was resumed has those of its latest attempt; one that failed before it began has no record.
    """
    try:
        found: Any = last_attempt(run)["overrides"]
    except UserError:
        try:
            found = bounded.yaml_value(run / run_record.HYDRA / "overrides.yaml")
        except CheckpointError:
            return []
    words = list(map(str, found)) if isinstance(found, list) else []
    return [word for word in words if hydra_overrides.split(word)[0] not in hydra_overrides.OWN]
