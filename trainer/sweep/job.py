"""One job of a sweep: run, resumed or left as it is. A failure neither hides the sweep nor stops it.

A job may run in a process of a launcher, on another machine: it knows its directory and that of the sweep.
"""

import contextlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from peakpoint.base.errors import BusyError, CheckpointError, PeakpointError
from peakpoint.base.lock import one_writer
from peakpoint.base.terminal import Console, say_error
from peakpoint.trainer.config import hydra_overrides
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.config.choices import load_plugins
from peakpoint.trainer.listeners.retrying_file import open_logs
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.study import is_run, read_result
from peakpoint.trainer.resume.plan import Plan, last_attempt
from peakpoint.trainer.signals import Ended
from peakpoint.trainer.sweep import record


def run_job(cfg: DictConfig, argv: Sequence[str], *, here: bool) -> float:
    """Run one job of the command line `argv`; returns its objective, NaN where it has none.

    Whatever goes wrong with it is recorded in its directory. Raises Ended when a signal ended the job in the
    process of the sweep (`here`), which it was meant for; a launcher's process takes its next job.
    """
    sys.argv[:] = argv  # a launcher's process has arguments of its own
    hydra = HydraConfig.get()
    directory = Path(hydra.runtime.output_dir).resolve()  # a link may lead elsewhere later
    name = f"job {hydra.job.num}"
    Console().say(f"{name}: {' '.join(run_record.typed())}")
    code = 0
    try:
        code = _run(cfg, directory, name)
    except Exception as error:  # not even a bug in one job ends the others
        say_error(_failed(cfg, directory, error))
    finally:
        record.try_update(Path(hydra.sweep.dir).resolve())
    if code > 128 and here:
        raise Ended(code - 128)
    objective = read_result(directory).measured("objective")
    return math.nan if objective is None else objective


def _run(cfg: DictConfig, directory: Path, name: str) -> int:
    """Run a job, or go on with it; returns the exit code of a run."""
    run_record.refuse_passwords(cfg)
    load_plugins(list(cfg.plugins))
    plan = Plan([], typed=hydra_overrides.keys(run_record.typed()))
    if os.path.lexists(directory / run_record.STATUS):
        state = run_record.read_status(directory)["state"]
        if state == "finished" or (state == "failed" and not cfg.retry_failed):
            Console().say(f"{name} is {state}{'' if state == 'finished' else ', and is left so'}")
            return 0
    if os.path.lexists(directory / run_record.RUN):
        plan = Plan([], run=directory, attempt=last_attempt(directory))
    config = checked(cfg)
    from peakpoint.trainer.run import run  # it brings torch

    return run(config, cfg, plan, directory)


def _failed(cfg: DictConfig, directory: Path, error: Exception) -> str:
    """Record a failure in the job's directory; returns the sentence to print.

    A run that has begun recorded it itself, and the directory of another run is left alone.
    """
    sentence = run_record.sentence(error)
    with contextlib.suppress(CheckpointError, OSError), one_writer(directory):
        if not is_run(directory):
            open_logs()
            run_record.log_failure(error)
            run_record.set_status(directory, "failed", error=sentence)
            run_record.save_config(directory, cfg)
    if isinstance(error, BusyError):
        return f"{sentence} It is left to that process."
    if isinstance(error, PeakpointError | OSError):
        return sentence
    return f"{sentence}; {directory / 'train.log'} has the traceback"
