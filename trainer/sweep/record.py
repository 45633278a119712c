"""sweep.json, table.csv and report.html: the jobs of a sweep and what came of them.

They are written as jobs end, by whichever process ends one. The states are read from the directories of the
jobs, so that a file that is behind is brought up to them.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peakpoint.base.errors import PeakpointError, UserError
from peakpoint.base.lock import briefly
from peakpoint.base.terminal import Console
from peakpoint.base.text import utc_now
from peakpoint.trainer.reports import page, run_record
from peakpoint.trainer.reports.study import Result, is_run, read_result
from peakpoint.trainer.reports.study_table import CSV, write_csv

NAME = "sweep.json"
FORMAT = 1
PENDING = "pending"
"""The state of a job that has not begun."""


@dataclass(frozen=True)
class Job:
    """A job of a sweep: its number, its directory below the sweep's, and its overrides."""

    number: int
    directory: str
    overrides: tuple[str, ...]


def read(folder: Path) -> dict[str, Any]:
    """Return sweep.json. Raises UserError when it is missing, broken, or of something else."""
    path = folder / NAME
    found = run_record.read_json(path)
    if found.get("format") != FORMAT:
        raise UserError(f"{path} is of a format that this version does not read.")
    if wrong := _wrong(found):
        raise UserError(f"{path} is not the record of a sweep: {wrong} is not what is written there.")
    return found


def _wrong(found: dict[str, Any]) -> str | None:
    """Return the name of a value of another type than the ones that are written."""
    for name in ("command", "launcher", "created"):
        if not isinstance(found.get(name), str):
            return name
    if not _are_texts(found.get("overrides")):
        return "overrides"
    jobs = found.get("jobs")
    if not isinstance(jobs, list):
        return "jobs"
    for number, job in enumerate(jobs):
        if not isinstance(job, dict) or job.get("number") != number or not _are_texts(job.get("overrides")):
            return "jobs"
        directory = job.get("directory")
        if not isinstance(directory, str) or not _is_below(directory):
            return "directory"
    return None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_below(directory: str) -> bool:
    path = Path(directory)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def jobs_of(found: dict[str, Any]) -> list[Job]:
    """Return the jobs in sweep.json as `read` returns it."""
    return [Job(job["number"], job["directory"], tuple(job["overrides"])) for job in found["jobs"]]


def write(folder: Path, jobs: Sequence[Job], **facts: Any) -> None:
    """Write sweep.json anew, with the state that each job has; `facts` describe the sweep."""
    with briefly(folder):
        _refresh(folder, {"format": FORMAT, **facts, "jobs": [{**vars(job)} for job in jobs]})


def update(folder: Path, **facts: Any) -> dict[str, Any]:
    """Bring sweep.json and table.csv up to the states of the jobs; returns sweep.json. Raises UserError."""
    with briefly(folder):
        return _refresh(folder, {**read(folder), **facts})


def try_update(folder: Path) -> None:
    """Do `update` and write the page where that can be done: a job that has ended is not lost with them."""
    with contextlib.suppress(PeakpointError, OSError):
        update(folder)
        write_page(folder)


def write_page(folder: Path) -> Path | None:
    """Write report.html of the jobs that have begun; returns its path, None where report=false in all.

    A failure is printed, as no job depends on the page. Raises UserError as `read`.
    """
    results = [each for each in _results(folder, jobs_of(read(folder))) if each.state != PENDING]
    if not any(_has_report(result.run) for result in results):
        return None
    try:
        with briefly(folder):
            return page.write_study(results, folder)
    except Exception as error:
        Console().say(f"No {folder / page.PAGE}: {run_record.sentence(error)}")
        return None


def _has_report(run: Path) -> bool:
    """Return whether a run is one with `report=true`."""
    try:
        found = run_record.read_run(run)
    except UserError:
        return False
    config = found.get(run_record.NOW, found.get("config", {}))
    return config.get("report", True) is True


def _results(folder: Path, jobs: Sequence[Job]) -> list[Result]:
    places = [folder / job.directory for job in jobs]
    return [read_result(place) if is_run(place) else Result(run=place, state=PENDING) for place in places]


def _refresh(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    results = _results(folder, jobs_of(found))
    for job, result in zip(found["jobs"], results, strict=True):
        job |= {"state": result.state, "objective": result.measured("objective"), "error": result.note}
    found["updated"] = utc_now()
    run_record.write_json(folder / NAME, found)
    write_csv(folder / CSV, [result for result in results if result.state != PENDING])
    return found
