"""A trial reports its epochs, and is stopped when its pruner says so."""

from dataclasses import replace

import pytest

from peakpoint.checkpointing.events import EpochEnd, EvalEnd
from peakpoint.checkpointing.policy import Stop
from peakpoint.trainer.config.schema import Pruner
from peakpoint.trainer.search import optuna_study
from peakpoint.trainer.search.judge import Judge, Trial

pytest.importorskip("optuna")


def study_of(storage):
    return optuna_study.open_study(storage, "s", "max", optuna_study.make_pruner(Pruner.median, 2, 5))


@pytest.fixture
def judge(tmp_path):
    """The judge of trial 3, after three others that had 0.9 in each of five epochs."""
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = study_of(storage)
    for _ in range(3):
        other = study.ask()
        for epoch in range(1, 6):
            other.report(0.9, epoch)
        study.tell(other, 0.9)
    assert study.ask().number == 3
    trial = Trial(
        number=3, storage=storage, study="s", pruner="median", startup_trials=2, from_epoch=0, at_target=True
    )
    return Judge(trial, "accuracy", "max", 0.0, 5)


def epoch(judge, number, accuracy, sparsity=0.0):
    """What the judge says at the end of an epoch."""
    seen = EvalEnd(number, 10 * number, {"accuracy": accuracy, "loss": 1.0}, sparsity, 0)
    assert judge.decide(seen) == []
    return judge.decide(EpochEnd(number, 10 * number))


def reports(judge):
    study = optuna_study.open_study(
        judge.trial.storage, "s", "max", optuna_study.make_pruner(Pruner.none, 0, 5)
    )
    return study.trials[3].intermediate_values


def test_a_trial_behind_the_others_is_stopped_and_says_why(judge):
    [stop] = epoch(judge, 1, 0.2)
    assert stop == Stop("pruned by the search: accuracy 20.00% in epoch 1, step 10, is behind other trials")


def test_a_trial_ahead_of_the_others_goes_on_and_is_reported(judge):
    assert epoch(judge, 1, 0.95) == epoch(judge, 2, 0.96) == []
    assert reports(judge) == {1: 0.95, 2: 0.96}


def test_a_ramp_is_not_cut_short(judge):
    judge = replace(judge, target=0.7)
    assert epoch(judge, 1, 0.2, sparsity=0.4) == []
    assert reports(judge) == {}
    assert len(epoch(judge, 2, 0.2, sparsity=0.7)) == 1


def test_a_ramp_is_judged_when_that_is_asked_for(judge):
    judge = replace(judge, target=0.7, trial=replace(judge.trial, at_target=False))
    assert len(epoch(judge, 1, 0.2, sparsity=0.4)) == 1


def test_the_first_epochs_are_not_judged(judge):
    judge = replace(judge, trial=replace(judge.trial, from_epoch=1))
    assert epoch(judge, 1, 0.2) == []
    assert len(epoch(judge, 2, 0.2)) == 1


def test_the_last_epoch_is_reported_and_stops_nothing(judge):
    assert epoch(judge, 5, 0.2) == []
    assert reports(judge) == {5: 0.2}


def test_a_value_that_is_not_finite_is_not_reported(judge):
    assert epoch(judge, 1, float("nan")) == []
    assert reports(judge) == {}


def test_an_epoch_that_is_trained_again_after_a_kill_is_reported_once(judge):
    epoch(judge, 1, 0.95)
    assert epoch(replace(judge), 1, 0.95) == []
    assert reports(judge) == {1: 0.95}


@pytest.mark.parametrize("broken", [{"number": 9}, {"storage": "sqlite:////nowhere/at/all.db"}])
def test_training_goes_on_without_the_storage(judge, caplog, broken):
    judge = replace(judge, trial=replace(judge.trial, **broken))
    assert epoch(judge, 1, 0.2) == epoch(judge, 2, 0.2) == []
    assert caplog.text.count("not informed of this run any more") == 1


def test_a_finished_trial_judges_nothing(judge):
    study = optuna_study.open_study(
        judge.trial.storage, "s", "max", optuna_study.make_pruner(Pruner.none, 0, 5)
    )
    study.tell(3, 0.5)
    assert epoch(judge, 1, 0.2) == []
