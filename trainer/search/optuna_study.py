"""The study of a search in Optuna's storage: opened by the search, and by each of its trials."""

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from peakpoint.base.errors import UserError
from peakpoint.trainer.config.schema import Pruner, Sampler, Search

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.trial import BaseTrial, FrozenTrial

FILE = "study.db"
RETRIES = "retries"
"""The attribute of a trial that tries a failed one again: the number of the first, its directory too."""
WAIT_S = 60
"""Seconds to wait for another process that writes to the database."""


def library() -> Any:
    """Return the module optuna, which warns but does not inform. Raises UserError where it is missing."""
    try:
        import optuna
    except ImportError:
        raise UserError("search= needs Optuna: pip install 'peakpoint[search]'.") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextlib.contextmanager
def explained(storage: str) -> Iterator[None]:
    """Within: an error of the storage is a UserError that names it."""
    optuna = library()
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError) as error:
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(".")
        raise UserError(f"search.storage={storage} cannot be used: {reason}.") from None


def open_study(storage: str, name: str, mode: str, pruner: "BasePruner") -> "Study":
    """Return the study of a name, made where there is none; `mode`, max or min, is that of its objective."""
    optuna = library()
    waits = {"connect_args": {"timeout": WAIT_S}} if storage.startswith("sqlite") else {}
    study: Study = optuna.create_study(
        storage=optuna.storages.RDBStorage(storage, engine_kwargs=waits),
        study_name=name,
        direction="maximize" if mode == "max" else "minimize",
        pruner=pruner,
        load_if_exists=True,
    )
    return study


def make_pruner(pruner: Pruner, startup_trials: int, epochs: int) -> "BasePruner":
    """Return the pruner of a search over runs of a number of epochs."""
    pruners = library().pruners
    made: BasePruner = {
        Pruner.none: lambda: pruners.NopPruner(),
        Pruner.median: lambda: pruners.MedianPruner(n_startup_trials=startup_trials),
        Pruner.successive_halving: lambda: pruners.SuccessiveHalvingPruner(),
        Pruner.hyperband: lambda: pruners.HyperbandPruner(max_resource=max(epochs, 2)),
    }[pruner]()
    return made


def ask(study: "Study", search: Search) -> "Trial":
    """Return a new trial. What a sampler draws by chance depends on the seed and on the trial's number alone.

    A sampler that a continued search made anew with its first seed would draw its first trials again.
    """
    samplers = library().samplers
    number = len(study.get_trials(deepcopy=False))
    seed = random.Random(f"{search.seed} {number}").getrandbits(31)
    if search.sampler is Sampler.tpe:
        study.sampler = samplers.TPESampler(n_startup_trials=search.startup_trials, seed=seed)
    else:
        study.sampler = samplers.RandomSampler(seed=seed)
    return study.ask()


def trial_of(study: "Study", number: int) -> "Trial":
    """Return a trial of a study by its number. Raises UserError for one that it does not have."""
    trial: Trial
    for frozen in study.get_trials(deepcopy=False):
        if frozen.number == number:
            trial = library().trial.Trial(study, frozen._trial_id)
            return trial
    raise UserError(f"The study {study.study_name} has no trial {number}.")


def directory(trial: "BaseTrial") -> str:
    """Return the name of the directory in which a trial is a run."""
    return str(trial.user_attrs.get(RETRIES, trial.number))


def standing(study: "Study") -> "dict[str, FrozenTrial]":
    """Return the trials by their directories; of one that was tried again, the latest."""
    return {directory(trial): trial for trial in study.get_trials(deepcopy=False)}


def retry_failed(study: "Study") -> None:
    """Let the next trials be the failed ones again: Optuna changes no trial that has ended."""
    for name, trial in standing(study).items():
        if trial.state.name == "FAIL":
            study.enqueue_trial(dict(trial.params), {RETRIES: int(name)})
