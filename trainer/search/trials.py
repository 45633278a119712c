"""The trials of a search as processes: each is a run in a directory of its own, and what came of it."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from peakpoint.base.files import CONF
from peakpoint.base.lock import alone
from peakpoint.base.terminal import escaped
from peakpoint.checkpointing.metrics import shown
from peakpoint.trainer.config.hydra_overrides import override, quote
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.study import ENDINGS, is_run, read_result

if TYPE_CHECKING:
    from optuna import Study

DEBUG = "HYDRA_FULL_ERROR"
"""The variable that the command sets for itself: a trial that is refused prints one line."""


@dataclass
class Running:
    """A trial that trains: its number, directory and process, and the file that takes the errors of that."""

    number: int
    directory: Path
    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def last_error(self) -> str:
        """Return the last error that the process printed, else its last line, "" for none."""
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - 4096))
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        printed = [line for line in lines if line.startswith("error: ")] or lines
        return escaped(printed[-1].removeprefix("error: ")) if printed else ""

    def interrupt(self) -> None:
        """Send Ctrl-C to the process, which saves; a second one ends it at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGINT)


def start(number: int, directory: Path, words: Sequence[str], trial: str, again: Sequence[str]) -> Running:
    """Start a trial, or go on with it where its directory has a run; `trial` is the override that names it.

    `again` are the words that a resume must be given anew. A Ctrl-C in the terminal is for the search alone.
    """
    if (directory / run_record.RUN).exists():
        words = [override(directory), *again]
    else:
        words = [*words, f"hydra.run.dir={quote(str(directory))}"]
    paths = [str(CONF.resolve().parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    errors = tempfile.TemporaryFile()  # noqa: SIM115, as long as the process
    inherited = {name: value for name, value in os.environ.items() if name != DEBUG}
    process = subprocess.Popen(
        [sys.executable, "-m", "peakpoint", "train", *words, trial],
        env={**inherited, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )
    return Running(number, directory, process, errors)


def is_busy(directory: Path) -> bool:
    """Return whether another process trains in a directory, such as a trial whose search was killed."""
    if not directory.is_dir():
        return False
    with alone(directory) as free:
        return not free


def conclude(study: "Study", number: int, directory: Path, error: str = "") -> str | None:
    """Record in the study what came of a trial; returns it in words, None for one that is to go on.

    `error` is the last word of its process, for a trial that was refused before it began.
    """
    from optuna.trial import TrialState

    if error and not (directory / run_record.RUN).exists():
        directory.mkdir(exist_ok=True)
        run_record.set_status(directory, "failed", error=error)
    if not is_run(directory):
        return None
    result = read_result(directory)
    if result.state == "failed":
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        return f"failed: {result.note}"
    if result.state not in ("finished", *ENDINGS.values()):
        return None
    if result.state in ENDINGS.values():
        study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        return result.note
    objective = result.measured("objective")
    if objective is None or (result.target and result.at_target is None):
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        return f"has no objective: {result.note}"
    study.tell(number, objective, skip_if_finished=True)
    return f"finished: {result.metric} {shown(str(result.metric), objective)}"
