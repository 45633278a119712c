"""The start and the end of a sweep in the process of its command: jobs planned, all checked, the folder held.

A sweep whose directory holds its record already is gone on with: its jobs must be the same.
"""

import contextlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from peakpoint.base import files
from peakpoint.base.errors import CheckpointError, PeakpointError, UserError
from peakpoint.base.lock import one_writer
from peakpoint.base.terminal import Console
from peakpoint.base.text import utc_now
from peakpoint.checkpointing.policies.early_stopping import DIVERGED
from peakpoint.trainer import run_directory
from peakpoint.trainer.config.hydra_overrides import OWN, split
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.study import is_run, read_results
from peakpoint.trainer.reports.study_table import print_study
from peakpoint.trainer.resume import advice, refusals
from peakpoint.trainer.resume.plan import last_attempt
from peakpoint.trainer.sweep import record, storage
from peakpoint.trainer.sweep.planning import Planned, planned
from peakpoint.trainer.sweep.record import Job


@dataclass(frozen=True)
class _Sweep:
    """A sweep that this process holds, and the command that goes on with it."""

    folder: Path
    command: str
    held: contextlib.ExitStack


_current: list[_Sweep] = []
"""The sweep of this process, if it is one."""


class BeforeSweep(Callback):
    """Refuses a sweep before Hydra has made anything for it, and before its first job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Take the directory of the sweep, and check every job."""
        with run_directory.refusing(config), contextlib.ExitStack() as held:
            folder = run_directory.expanded("hydra.sweep.dir", config.hydra.sweep.dir)
            run_directory.note(folder)
            run_directory.refuse_taken(folder.resolve())
            known = _known(folder)
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(one_writer(folder))
            plan = list(planned(config))
            if known is not None:
                _check_same(folder, known, [job for job, *_ in plan])
            check_jobs(folder, plan, new=len(known or ()))
            storage.check_room(folder, [found for job, _, found in plan if _lacks(folder / job.directory)])
            _begin(folder, plan)
            _current.append(_Sweep(folder, _command(folder), held.pop_all()))
            run_directory.accept()


def _known(folder: Path) -> list[Job] | None:
    """Return the jobs that a sweep's directory records; None for a new sweep. Raises UserError."""
    if os.path.lexists(folder / record.NAME):
        return record.jobs_of(record.read(folder))
    if os.path.lexists(folder / run_directory.SWEEP):
        raise UserError(f"{folder} holds a sweep already: choose another hydra.sweep.dir.")
    return None


def _check_same(folder: Path, known: Sequence[Job], jobs: Sequence[Job]) -> None:
    """Raise UserError unless the jobs that a sweep has are the first of those that are planned now."""
    now = [_lasting(job) for job in jobs]
    for number, job in enumerate(known):
        if number >= len(now):
            raise UserError(
                f"{folder} holds a sweep of {len(known)} jobs, and this command has {len(now)}: repeat its "
                "command, or choose another hydra.sweep.dir."
            )
        if _lasting(job) != now[number]:
            raise UserError(
                f"{folder} holds a sweep whose job {number} is {shlex.join(_lasting(job).overrides)}, and "
                f"here it is {shlex.join(now[number].overrides)}: repeat its command, or choose another "
                "hydra.sweep.dir."
            )


def _lasting(job: Job) -> Job:
    """Return a job without the overrides of an attempt alone."""
    words = tuple(word for word in job.overrides if split(word)[0] not in OWN)
    return replace(job, overrides=words)


def check_jobs(folder: Path, plan: Sequence[Planned], new: int | None = None) -> None:
    """Raise UserError for a directory of two jobs, of another run, or of another configuration.

    Jobs from the number `new` on have not begun; None: all have.
    """
    places: dict[Path, int] = {}
    for job, cfg, _ in plan:
        directory = (folder / job.directory).resolve()
        if directory in places:
            raise UserError(
                f"job {places[directory]} and job {job.number} have one directory, {directory}: let "
                "hydra.sweep.subdir differ, as ${hydra.job.num} does."
            )
        places[directory] = job.number
        if new is not None and job.number >= new:
            run_directory.refuse_taken(directory)
        elif is_run(directory):
            run_record.read_status(directory)
            if (directory / run_record.RUN).exists():
                attempt = last_attempt(directory)
                try:
                    refusals.check_changes(cfg, run_record.saved_config(directory, attempt), ())
                except UserError as error:
                    raise UserError(f"job {job.number} in {directory}: {error}") from None


def _lacks(directory: Path) -> bool:
    """Return whether a job has yet to store its checkpoints."""
    return not (directory / run_record.RUN).exists()


def _begin(folder: Path, plan: Sequence[Planned]) -> None:
    """Write sweep.json with all jobs, and sweep what dead writers left."""
    monitored = {(str(c.checkpoint.monitor.metric), str(c.checkpoint.monitor.mode)) for *_, c in plan}
    [(metric, mode)] = monitored if len(monitored) == 1 else [(None, None)]
    files.sweep(folder)
    write_record(folder, [job for job, *_ in plan], _launcher(), metric, mode)


def write_record(
    folder: Path,
    jobs: Sequence[Job],
    launcher: str,
    metric: str | None,
    mode: str | None,
    state: str = "running",
) -> None:
    """Write sweep.json of a sweep that runs in this process; one that is gone on with keeps its age."""
    created = record.read(folder)["created"] if os.path.lexists(folder / record.NAME) else utc_now()
    attempt = run_record.attempt(1, run_record.typed(), {}, None)
    record.write(
        folder,
        jobs,
        command=attempt["command"],
        cwd=attempt["directory"],
        overrides=attempt["overrides"],
        created=created,
        launcher=launcher,
        objective={"metric": metric, "mode": mode},
        state=state,
        **run_record.holder(),
    )


def _launcher() -> str:
    return str(HydraConfig.get().runtime.choices.get("hydra/launcher", "basic"))


def _command(folder: Path) -> str:
    """Return the command that goes on with a sweep; its launcher is not taken from the record."""
    chosen = ("hydra/", "hydra.launcher")
    words = [word for word in run_record.typed("hydra") if str(split(word)[0]).startswith(chosen)]
    return advice.command(folder, *words)


def is_here() -> bool:
    """Return whether this process holds a sweep."""
    return bool(_current)


def end() -> int:
    """Print the table of the sweep and how to go on, and release it; returns 1 unless all jobs are finished.

    Without a sweep it returns 0.
    """
    if not _current:
        return 0
    sweep = _current.pop()
    with sweep.held:
        try:
            jobs = record.read(sweep.folder)["jobs"]
            jobs = record.update(sweep.folder)["jobs"]
            states = [job["state"] for job in jobs]
            unfinished = [state for state in states if state not in ("finished", "failed", DIVERGED)]
            state = "interrupted" if unfinished else "failed" if "failed" in states else "finished"
            record.update(sweep.folder, state=state)
        except (PeakpointError, OSError) as error:
            Console().say(f"The record of the sweep cannot be written: {error}")
            state = "unknown"
        console = Console()
        with contextlib.suppress(UserError, CheckpointError):  # no job has begun
            print_study(console, read_results([sweep.folder]), title=str(sweep.folder))
            if written := record.write_page(sweep.folder):
                console.say(f"Report: {written}")
        if state == "interrupted":
            console.say(
                f"{len(unfinished)} of {len(states)} jobs are not finished; to go on: {sweep.command}"
            )
        elif state == "failed":
            console.say(f"To try failed jobs again: {sweep.command} retry_failed=true")
        return int(state != "finished")
