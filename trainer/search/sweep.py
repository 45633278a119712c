"""A sweep whose jobs Optuna chooses: -m with search=. It is continued by resume= with its directory.

Everything is on disk at any moment: the parameters of a trial and its reports in the study, the rest in the
directory of its run. A search that was killed leaves its trials to themselves; the one that continues it
waits for those that still train, resumes those that were interrupted, and repeats none.
"""

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from peakpoint.base.errors import PeakpointError, UserError
from peakpoint.base.lock import one_writer
from peakpoint.base.terminal import Console
from peakpoint.trainer import run_directory
from peakpoint.trainer.config import recorded
from peakpoint.trainer.config.hydra_overrides import OWN, keys, split, under
from peakpoint.trainer.config.schema import Config, Monitor, Sampler, Search
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.study import read_results
from peakpoint.trainer.reports.study_table import print_study
from peakpoint.trainer.resume import advice
from peakpoint.trainer.search import judge, optuna_study, space, trials
from peakpoint.trainer.search.space import Dimension
from peakpoint.trainer.sweep import record, storage
from peakpoint.trainer.sweep.planning import composed
from peakpoint.trainer.sweep.record import Job
from peakpoint.trainer.sweep.start import check_jobs, write_record

if TYPE_CHECKING:
    from optuna import Study

LAUNCHER = "search"
"""The launcher in sweep.json of a search."""
SPACE, FIXED = "space", "overrides"
"""Attributes of the study: the overrides that span the space, and those that all trials share."""
_POLL_S = 0.2
_OF_SWEEPS = ("hydra.sweep", "hydra.sweeper", "hydra.launcher", "hydra.mode", "hydra.run")


class BeforeSearch(Callback):
    """Makes the sweep that asks for a search, in place of Hydra's own."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Refuse a search that is not a sweep."""
        with run_directory.refusing(config):
            if config.search is not None and not config.trial:
                raise UserError(f"search={config.search.sampler.name} makes a sweep: add -m to the command.")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Search, then end this process: Hydra has nothing left to do."""
        if config.search is not None:
            with run_directory.refusing(config):
                sys.exit(_search(config))


def _search(config: DictConfig) -> int:
    """Check the whole space, then run the trials; returns the exit code. Raises UserError."""
    optuna_study.library()
    if str(config.hydra.runtime.choices["hydra/launcher"]) != "basic":
        raise UserError(
            "A search starts its trials itself, search.processes at a time: leave out hydra/launcher."
        )
    folder = run_directory.expanded("hydra.sweep.dir", config.hydra.sweep.dir)
    run_directory.note(folder)
    run_directory.refuse_taken(folder.resolve())
    known = [name for name in (run_directory.SWEEP, record.NAME) if os.path.lexists(folder / name)]
    if known and (known != [record.NAME] or record.read(folder)["launcher"] != LAUNCHER):
        raise UserError(f"{folder} holds a sweep that is not a search: choose another hydra.sweep.dir.")
    dimensions, words = space.split_words(run_record.typed(), GlobalHydra.instance().config_loader())
    fixed = [word for word in words if not under(str(split(word)[0]), ("search", *OWN))]
    corners = _check_space(config, dimensions, words)
    settings = corners[0]
    assert settings.search
    points: Sequence[Any] = ()
    if settings.search.sampler is Sampler.grid:
        dimensions, points = space.grid(dimensions)
    total = settings.search.trials or len(points)
    if points:
        points = points[:total]
        total = len(points)
    folder.mkdir(parents=True, exist_ok=True)
    with one_writer(folder):
        begun = len(list(folder.glob(f"*/{run_record.RUN}")))
        storage.check_room(folder, corners, total - begun)
        sweep = _open(folder.resolve(), settings, dimensions, fixed)
        with optuna_study.explained(sweep.storage):
            check_jobs(folder, [composed(config, job.overrides, job.number) for job in sweep.jobs()])
            run_directory.accept()
            for point in points:
                sweep.study.enqueue_trial(dict(point), skip_if_exists=True)
            if config.retry_failed:
                optuna_study.retry_failed(sweep.study)
            return sweep.run(total)


def _check_space(config: DictConfig, dimensions: list[Dimension], words: list[str]) -> list[Config]:
    """Return the configurations of trials from everywhere in the space, checked. Raises UserError."""
    if not dimensions:
        raise UserError(
            "A search needs a space: sweep a key, such as 'optimizer.lr=tag(log,interval(1e-4,1e-1))'."
        )
    found = []
    for drawn in space.corners(dimensions):
        try:
            found.append(composed(config, [*words, *drawn], typed=keys([*words, *drawn]))[2])
        except UserError as error:
            raise UserError(f"A trial of {shlex.join(drawn)} would be refused: {error}") from None
    return found


def _open(folder: Path, settings: Config, dimensions: list[Dimension], fixed: list[str]) -> "_Sweep":
    """Return the search in a folder, new or to go on with. Raises UserError for one of another space."""
    search = settings.search
    assert search
    url = search.storage or f"sqlite:///{folder / optuna_study.FILE}"
    with optuna_study.explained(url):
        pruner = optuna_study.make_pruner(search.pruner, search.startup_trials, settings.epochs)
        mode = str(settings.checkpoint.monitor.mode)
        study = optuna_study.open_study(url, search.study or folder.name, mode, pruner)
    now = {SPACE: [each.word for each in dimensions], FIXED: fixed}
    for name, value in now.items():
        known = study.user_attrs.get(name)
        if known is None:
            study.set_user_attr(name, value)
        elif known != value:
            raise UserError(
                f"{folder} holds a search whose {name} is {shlex.join(map(str, known))}, and here it is "
                f"{shlex.join(value)}: repeat its command, or choose another hydra.sweep.dir."
            )
    return _Sweep(folder, study, search, url, dimensions, fixed, settings.checkpoint.monitor)


@dataclass
class _Sweep:
    """A search that this process holds."""

    folder: Path
    study: "Study"
    search: Search
    storage: str
    dimensions: list[Dimension]
    fixed: list[str]
    monitor: Monitor
    console: Console = field(default_factory=Console)
    running: list[trials.Running] = field(default_factory=list)
    left: set[int] = field(default_factory=set)
    """Trials that ended without being finished; the next command goes on with them."""

    def run(self, total: int) -> int:
        """Run trials until there are `total`; returns 0 if all of them ended well, 1 otherwise."""
        try:
            while self._step(total):
                time.sleep(_POLL_S)
        except BaseException as error:
            self._interrupt()
            if isinstance(error, KeyboardInterrupt):
                self._report(total)
            raise
        self._report(total)
        return int(bool(self.left) or self._count("FAIL") > 0)

    def _count(self, state: str) -> int:
        """Return how many trials are in a state of Optuna's; one that was tried again counts once."""
        return sum(trial.state.name == state for trial in optuna_study.standing(self.study).values())

    def _step(self, total: int) -> bool:
        """Conclude what has ended and start what there is room for; returns whether anything is left."""
        for each in [each for each in self.running if each.process.poll() is not None]:
            self._conclude(each)
        known = optuna_study.standing(self.study)
        begun = len(known) - self._count("WAITING")
        here = {each.number for each in self.running} | self.left
        others = {
            trial.number: self.folder / name
            for name, trial in known.items()
            if trial.state.name == "RUNNING" and trial.number not in here
        }
        waiting = [number for number, directory in others.items() if not trials.is_busy(directory)]
        room = self.search.processes - len(self.running) - (len(others) - len(waiting))
        for number in waiting[: max(0, room)]:
            if (outcome := trials.conclude(self.study, number, others[number])) is not None:
                self._say(others[number], outcome)
            else:
                self._start(number)
        for _ in range(min(room - len(waiting), total - begun)):
            self._start(optuna_study.ask(self.study, self.search).number)
        return bool(self.running or others or begun < total)

    def _start(self, number: int) -> None:
        asked = optuna_study.trial_of(self.study, number)
        directory = self.folder / optuna_study.directory(asked)
        drawn = [each.draw(asked) for each in self.dimensions]
        self.console.say(f"trial {directory.name}: {' '.join(drawn)}")
        search = self.search
        trial = judge.Trial(
            number=number,
            storage=self.storage,
            study=self.study.study_name,
            pruner=search.pruner.value,
            startup_trials=search.startup_trials,
            from_epoch=search.from_epoch,
            at_target=search.at_target,
        )
        places = _places()
        words = [*places, *self.fixed, *drawn]
        drift = [word for word in run_record.typed() if split(word)[0] == "accept_drift"]
        again = [*places, *recorded.needs_word(self.fixed), *drift]
        self._write_record()
        self.running.append(trials.start(number, directory, words, trial.word(), again))

    def _conclude(self, ended: trials.Running) -> None:
        """Record and say what came of a trial whose process has ended."""
        self.running.remove(ended)
        with ended.errors:
            error = ended.last_error() if 0 < ended.process.returncode < 128 else ""
        if trials.is_busy(ended.directory):  # by the process of a search that was killed
            return
        outcome = trials.conclude(self.study, ended.number, ended.directory, error)
        if outcome is None:
            self.left.add(ended.number)
        self._say(ended.directory, outcome or f"is not finished{': ' * bool(error)}{error}")

    def _say(self, directory: Path, outcome: str) -> None:
        self.console.say(f"trial {directory.name} {outcome}")
        self._write_record()
        with contextlib.suppress(PeakpointError, OSError):
            record.write_page(self.folder)

    def jobs(self) -> list[Job]:
        """Return the trials that have begun, with their overrides."""
        found = []
        for trial in self.study.get_trials(deepcopy=False):
            new = optuna_study.directory(trial) == str(trial.number)
            if new and trial.state.name != "WAITING" and len(trial.params) == len(self.dimensions):
                drawn = [each.draw(trial) for each in self.dimensions]
                found.append(Job(trial.number, str(trial.number), (*self.fixed, *drawn)))
        return found

    def _write_record(self, state: str = "running") -> None:
        """Write sweep.json and table.csv with the trials that have begun."""
        metric, mode = self.monitor.metric, str(self.monitor.mode)
        with contextlib.suppress(UserError, OSError):  # a trial that has ended is not lost with the table
            write_record(self.folder, self.jobs(), LAUNCHER, metric, mode, state)

    def _interrupt(self) -> None:
        """End the trials that train: each saves first. A second Ctrl-C ends them at once."""
        for _ in range(2):
            for each in self.running:
                each.interrupt()
            with contextlib.suppress(KeyboardInterrupt):
                for each in self.running:
                    each.process.wait()
                break
        for each in [each for each in self.running if each.process.poll() is not None]:
            self._conclude(each)

    def _report(self, total: int) -> None:
        """Print the table, the best trial, and how to go on with a search that is not finished."""
        counts = {name: self._count(name) for name in ("COMPLETE", "PRUNED", "FAIL")}
        ended = sum(counts.values())
        self._write_record("interrupted" if ended < total else "failed" if counts["FAIL"] else "finished")
        with contextlib.suppress(UserError):
            print_study(self.console, read_results([self.folder]), title=str(self.folder))
            if written := record.write_page(self.folder):
                self.console.say(f"Report: {written}")
        self.console.say(
            f"{ended} of {total} trials: {counts['COMPLETE']} finished, {counts['PRUNED']} pruned, "
            f"{counts['FAIL']} failed"
        )
        if counts["COMPLETE"]:
            best = self.study.best_trial
            drawn = shlex.join(each.draw(best) for each in self.dimensions)
            self.console.say(f"best: trial {optuna_study.directory(best)}, {best.value:.4g}: {drawn}")
        if ended < total:
            self.console.say(f"To go on: {advice.command(self.folder)}")
        elif counts["FAIL"]:
            self.console.say(f"To try failed trials again: {advice.command(self.folder)} retry_failed=true")


def _places() -> list[str]:
    """Return what every trial is given beside the overrides: where the configuration lies."""
    hydra = [word for word in run_record.typed("hydra") if not under(str(split(word)[0]), _OF_SWEEPS)]
    return [*advice.config_options(sys.argv[1:]), *hydra]
