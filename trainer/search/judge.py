"""A run that is a trial of a search: its evaluations are reported, and a pruner may stop it."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakpoint.base.errors import UserError
from peakpoint.checkpointing.events import EpochEnd, EvalEnd, Event
from peakpoint.checkpointing.metrics import shown
from peakpoint.checkpointing.policies.sparsity import SLACK
from peakpoint.checkpointing.policy import Decision, Policy, Stop, ranked
from peakpoint.trainer.config.hydra_overrides import quote
from peakpoint.trainer.config.schema import Config, Pruner
from peakpoint.trainer.reports.study import PRUNED
from peakpoint.trainer.search import optuna_study

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("peakpoint")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The trial that a run is, in the storage of its search, and by what it is judged."""

    number: int
    storage: str
    study: str
    pruner: str
    startup_trials: int
    from_epoch: int
    at_target: bool

    def word(self) -> str:
        """Return the override that makes a run this trial."""
        words = [f"{k}:{quote(v) if isinstance(v, str) else v}" for k, v in vars(self).items()]
        return f"++trial={{{','.join(words)}}}"


@dataclass
class Judge(Policy):
    """Reports the metric of each epoch to a trial, and stops the run when the pruner of its search says so.

    With `trial.at_target` no evaluation counts before the sparsity `target` is reached: while a network is
    pruned its metric says little about the end. It saves nothing and has no counters: the reports are in the
    storage of the search.
    """

    trial: Trial
    metric: str
    mode: str
    target: float
    epochs: int

    def __post_init__(self) -> None:
        self._seen: EvalEnd | None = None
        self._found: optuna.Trial | None = None
        self._works = True

    def __deepcopy__(self, memo: dict[int, Any]) -> "Judge":
        return self  # the copies are asked what to keep, and a connection cannot be copied

    def decide(self, event: Event) -> list[Decision]:
        """Report the last evaluation of an epoch; return a Stop unless the trial is to go on."""
        if isinstance(event, EvalEnd):
            self._seen = event
        if not isinstance(event, EpochEnd) or self._seen is None or not self._works:
            return []
        seen, self._seen = self._seen, None
        value = ranked(seen.metrics, self.metric)
        early = seen.epoch <= self.trial.from_epoch
        if value is None or early or (self.trial.at_target and seen.sparsity < self.target - SLACK):
            return []
        try:
            behind = self._is_behind(seen.epoch, value)
        except Exception as error:  # training does not depend on the storage
            self._works = False
            log.warning("the search is not informed of this run any more: %s", error)
            return []
        if not behind or seen.epoch >= self.epochs:
            return []
        reached = f"{self.metric} {shown(self.metric, value)} in epoch {seen.epoch}, step {seen.step},"
        return [Stop(f"{PRUNED}: {reached} is behind other trials")]

    def _is_behind(self, epoch: int, value: float) -> bool:
        """Report a value, unless an earlier attempt has; return whether the pruner stops the trial."""
        if self._found is None:
            trial = self.trial
            pruner = optuna_study.make_pruner(Pruner(trial.pruner), trial.startup_trials, self.epochs)
            study = optuna_study.open_study(trial.storage, trial.study, self.mode, pruner)
            self._found = optuna_study.trial_of(study, trial.number)
        known = self._found.study.trials[self.trial.number]
        if known.state.is_finished():
            raise RuntimeError(f"trial {self.trial.number} is finished")
        if epoch not in known.intermediate_values:
            self._found.report(value, epoch)
        return self._found.should_prune()


def judges(config: Config) -> dict[str, Policy]:
    """Return the judge of a run that is a trial, by the name that policies have; none of any other run."""
    if not config.trial:
        return {}
    try:
        trial = Trial(**config.trial)
    except TypeError:
        raise UserError("trial is set by a search, for its own runs: leave it out.") from None
    monitor = config.checkpoint.monitor
    target = config.pruning.target
    return {"search": Judge(trial, monitor.metric, monitor.mode, target, config.epochs)}
