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
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base.errors import PeakpointError, UserError
from peakpoint.base.lock import one_writer
from peakpoint.base.terminal import Console
from peakpoint.trainer import run_directory
from peakpoint.trainer.config import recorded
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.config.explain import explain
from peakpoint.trainer.config.hydra_overrides import keys, split, under
from peakpoint.trainer.config.schema import Config, Monitor, Sampler, Search
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.study import read_results
from peakpoint.trainer.reports.study_table import print_study
from peakpoint.trainer.resume import advice
from peakpoint.trainer.search import judge, optuna_study, space, trials
from peakpoint.trainer.search.space import Dimension
from peakpoint.trainer.sweep import record
from peakpoint.trainer.sweep.record import Job
from peakpoint.trainer.sweep.start import write_record

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
    loader = GlobalHydra.instance().config_loader()
    dimensions, words = space.split_words(run_record.typed(), loader)
    fixed = [word for word in words if not under(str(split(word)[0]), ("search",))]
    settings = _check_space(config, loader, dimensions, words)
    assert settings.search
    points: Sequence[Any] = ()
    if settings.search.sampler is Sampler.grid:
        dimensions, points = space.grid(dimensions)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    run_directory.accept()
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(one_writer(folder))
            sweep = _open(folder.resolve(), settings, dimensions, fixed)
        except PeakpointError:
            if made:
                held.close()
                folder.rmdir()
            raise
        total = settings.search.trials or len(points)
        if points:
            points = points[:total]
            total = len(points)
        with optuna_study.explained(sweep.storage):
            for point in points:
                sweep.study.enqueue_trial(dict(point), skip_if_exists=True)
            return sweep.run(total)


def _check_space(config: DictConfig, loader: Any, dimensions: list[Dimension], words: list[str]) -> Config:
    """Return the settings that the trials share, once values from everywhere in the space are checked."""
    if not dimensions:
        raise UserError(
            "A search needs a space: sweep a key, such as 'optimizer.lr=tag(log,interval(1e-4,1e-1))'."
        )
    combinations = [[*words, *combination] for combination in space.corners(dimensions)]
    for combination in combinations:
        try:
            cfg = loader.load_sweep_config(config, combination)
            with open_dict(cfg):
                del cfg["hydra"]
            run_record.refuse_passwords(cfg)
            settings = checked(cfg, keys(combination))
        except (HydraException, OmegaConfBaseException, PeakpointError) as error:
            sentence = str(error) if isinstance(error, PeakpointError) else explain(error)
            drawn = shlex.join(combination[len(words) :])
            raise UserError(f"A trial of {drawn} would be refused: {sentence}") from None
    return settings


def _open(folder: Path, settings: Config, dimensions: list[Dimension], fixed: list[str]) -> "_Sweep":
    """Return the search in a folder, new or to go on with. Raises UserError for one of another space."""
    search = settings.search
    assert search
    storage = search.storage or f"sqlite:///{folder / optuna_study.FILE}"
    with optuna_study.explained(storage):
        pruner = optuna_study.make_pruner(search.pruner, search.startup_trials, settings.epochs)
        mode = str(settings.checkpoint.monitor.mode)
        study = optuna_study.open_study(storage, search.study or folder.name, mode, pruner)
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
    return _Sweep(folder, study, search, storage, dimensions, fixed, settings.checkpoint.monitor)


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
        return int(bool(self.left) or any(trial.state.name == "FAIL" for trial in self.study.get_trials()))

    def _step(self, total: int) -> bool:
        """Conclude what has ended and start what there is room for; returns whether anything is left."""
        for each in [each for each in self.running if each.process.poll() is not None]:
            self._conclude(each)
        known = self.study.get_trials(deepcopy=False)
        begun = sum(trial.state.name != "WAITING" for trial in known)
        here = {each.number for each in self.running} | self.left
        others = [t.number for t in known if t.state.name == "RUNNING" and t.number not in here]
        waiting = [number for number in others if not trials.is_busy(self.folder / str(number))]
        room = self.search.processes - len(self.running) - (len(others) - len(waiting))
        for number in waiting[: max(0, room)]:
            if (outcome := trials.conclude(self.study, number, self.folder / str(number))) is not None:
                self._say(number, outcome)
            else:
                self._start(number)
        for _ in range(min(room - len(waiting), total - begun)):
            self._start(optuna_study.ask(self.study, self.search).number)
        return bool(self.running or others or begun < total)

    def _start(self, number: int) -> None:
        drawn = [each.draw(optuna_study.trial_of(self.study, number)) for each in self.dimensions]
        self.console.say(f"trial {number}: {' '.join(drawn)}")
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
        again = [*places, *recorded.needs_word(self.fixed)]
        directory = self.folder / str(number)
        self._write_record()
        self.running.append(trials.start(number, directory, words, trial.word(), again))

    def _conclude(self, ended: trials.Running) -> None:
        """Record and say what came of a trial whose process has ended."""
        self.running.remove(ended)
        number, directory = ended.number, self.folder / str(ended.number)
        with ended.errors:
            error = ended.last_error() if 0 < ended.process.returncode < 128 else ""
        if trials.is_busy(directory):  # by the process of a search that was killed
            return
        outcome = trials.conclude(self.study, number, directory, error)
        if outcome is None:
            self.left.add(number)
        self._say(number, outcome or "is not finished")

    def _say(self, number: int, outcome: str) -> None:
        self.console.say(f"trial {number} {outcome}")
        self._write_record()

    def _write_record(self) -> None:
        """Write sweep.json and table.csv with the trials that have begun."""
        jobs = []
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.name != "WAITING" and len(trial.params) == len(self.dimensions):
                drawn = [each.draw(trial) for each in self.dimensions]
                jobs.append(Job(trial.number, str(trial.number), (*self.fixed, *drawn)))
        metric, mode = self.monitor.metric, str(self.monitor.mode)
        with contextlib.suppress(UserError, OSError):  # a trial that has ended is not lost with the table
            write_record(self.folder, jobs, LAUNCHER, metric, mode)

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
        self._write_record()
        with contextlib.suppress(UserError):
            print_study(self.console, read_results([self.folder]), title=str(self.folder))
        found = self.study.get_trials(deepcopy=False)
        counts = {name: sum(t.state.name == name for t in found) for name in ("COMPLETE", "PRUNED", "FAIL")}
        ended = sum(counts.values())
        self.console.say(
            f"{ended} of {total} trials: {counts['COMPLETE']} finished, {counts['PRUNED']} pruned, "
            f"{counts['FAIL']} failed"
        )
        if counts["COMPLETE"]:
            best = self.study.best_trial
            drawn = shlex.join(each.draw(best) for each in self.dimensions)
            self.console.say(f"best: trial {best.number}, {best.value:.4g}: {drawn}")
        if ended < total:
            self.console.say(f"To go on: {advice.command(self.folder)}")


def _places() -> list[str]:
    """Return what every trial is given beside the overrides: where the configuration lies."""
    hydra = [word for word in run_record.typed("hydra") if not under(str(split(word)[0]), _OF_SWEEPS)]
    return [*advice.config_options(sys.argv[1:]), *hydra]
