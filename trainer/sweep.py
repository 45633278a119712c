"""A sweep: a failed job neither hides nor stops it, and it ends with a table of its jobs."""

import contextlib
import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from peakpoint.base.errors import CheckpointError, PeakpointError, UserError
from peakpoint.base.lock import one_writer
from peakpoint.base.terminal import Console, say_error
from peakpoint.trainer.config import hydra_overrides, unheeded
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.listeners.retrying_file import open_logs
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.study import read_results
from peakpoint.trainer.reports.study_table import CSV, print_study, write_csv
from peakpoint.trainer.resume.plan import Plan
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
    """Print the table of the jobs in a sweep's folder, and write it beside them."""
    with contextlib.suppress(UserError):  # no job has begun
        results = read_results([folder])
        print_study(Console(), results, title=str(folder))
        write_csv(folder / CSV, results)
