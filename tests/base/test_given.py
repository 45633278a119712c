"""What a caller gives: refused in one line before anything is written, or taken as it was meant."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import peakpoint
from peakpoint import CheckpointError, CheckpointManager, load_checkpoint, resume_training
from peakpoint.adapters.common import newest
from peakpoint.base import given
from peakpoint.checkpointing.policies.best import Best, Metric
from peakpoint.checkpointing.policies.early_stopping import EarlyStopping
from peakpoint.checkpointing.policies.interval import Interval
from peakpoint.checkpointing.policies.sparsity import Sparsity
from peakpoint.checkpointing.policies.top_k import TopK
from peakpoint.checkpointing.policies.wall_clock import WallClock

SPARSITY = {
    "metric": "accuracy", "mode": "max", "min_delta": 0, "targets": [0.5], "rule": "at_least",
    "tolerance": 0.1, "jump_over": True, "settled": 1, "keep": None,
}  # fmt: skip


@pytest.fixture
def training():
    network = nn.Linear(2, 2)
    return network, torch.optim.Adam(network.parameters())


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert list((tmp_path / "here").iterdir()) == []  # above all no folder named ~


def test_a_tilde_is_the_home_directory_everywhere(home, training):
    manager = CheckpointManager("~/x")
    saved = manager.save_training_checkpoint(*training, epoch=1, step=1)
    assert saved.is_relative_to(home / "x")
    assert load_checkpoint("~/x/training/latest.pt", *training)["epoch"] == 1
    assert resume_training("~/x/training/latest.pt", *training)["next_epoch"] == 1
    assert newest("~/x") == saved
    with pytest.raises(CheckpointError, match=rf"^{home}/x does not say which checkpoint is its best"):
        peakpoint.load_model("~/x")
    assert given.path("~nobody-of-that-name/x").name == "x"


@pytest.mark.parametrize("wrong", [None, "", 3, "a\0b"])
def test_what_is_no_path(wrong, training):
    for call in (
        lambda: CheckpointManager(wrong),
        lambda: load_checkpoint(wrong, *training),
        lambda: peakpoint.load_model(wrong),
    ):
        with pytest.raises(CheckpointError, match=r"is .*: give a path\.$"):
            call()


WRONG = [
    ({"optimizer": None}, "optimizer is None: give one object with state_dict() and load_state_dict()."),
    ({"optimizer": "adam"}, "optimizer is of type str: give one object"),
    ({"optimizer": torch.optim.Adam}, "optimizer is the class Adam: give one object"),
    ({"optimizer": []}, "optimizer is of type list: give one object with state_dict() and load_state_dict(), "
     "such as one of your own that joins theirs."),
    ({"scheduler": [1]}, "scheduler is of type list: give one object"),
    ({"model": None}, "model is None: give the network, a torch.nn.Module."),
    ({"model": nn.Linear}, "model is the class Linear: give the network"),
    ({"model": nn.Linear(1, 1).state_dict()}, "model is of type OrderedDict: give the network"),
    ({"metrics": {"a": "x"}}, "The metric a is 'x': give a number."),
    ({"metrics": [0.5]}, "metrics is of type list: give a dict of numbers by name."),
    ({"epoch": "3"}, "epoch='3' is not a whole number."),
    ({"epoch": None}, "epoch=None is not a whole number."),
    ({"epoch": 1.5}, "epoch=1.5 is not a whole number."),
    ({"epoch": -1}, "epoch=-1 is out of range: it must be at least 0."),
    ({"step": math.nan}, "step=nan is not a whole number."),
    ({"batch": "x"}, "batch='x' is not a whole number."),
    ({"config": "x"}, "config is of type str: give a dict."),
    ({"config": {"lr": np.float32(1)}}, "state['config']['lr'] is of type numpy.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "sentence"), WRONG)
def test_a_save_of_what_is_wrong_writes_nothing(tmp_path, training, wrong, sentence):
    manager = CheckpointManager(tmp_path)
    right = {"model": training[0], "optimizer": training[1], "epoch": 1, "step": 1}
    with pytest.raises(CheckpointError) as refusal:
        manager.save_training_checkpoint(**{**right, **wrong})
    assert str(refusal.value).startswith(sentence)
    assert manager.list_checkpoints()["training"] == []


def test_numbers_of_other_libraries_are_numbers(tmp_path, training):
    manager = CheckpointManager(tmp_path, np.int64(2))
    for epoch, step in ((np.int64(1), torch.tensor(5)), (2.0, np.float64(6))):
        saved = manager.save_training_checkpoint(*training, epoch=epoch, step=step)
    assert saved.name == "checkpoint_epoch_0002_step_00000006.pt"
    config = {"lr": math.nan, "bound": math.inf}
    saved = manager.save_training_checkpoint(*training, epoch=3, step=7, config=config)
    found = load_checkpoint(saved, training[0])["config"]
    assert math.isnan(found["lr"])
    assert found["bound"] == math.inf


def test_an_optimizer_that_is_not_saved_need_not_be_given(tmp_path, training):
    manager = CheckpointManager(tmp_path, save_optimizer=False)
    saved = manager.save_training_checkpoint(training[0], None, epoch=1, step=1)
    assert load_checkpoint(saved, training[0])["epoch"] == 1
    for optimizer in (None, [training[1]]):
        with pytest.raises(CheckpointError, match=r"^optimizer is "):
            resume_training(saved, training[0], optimizer)
    with pytest.raises(CheckpointError, match=r"^optimizer is of type list"):
        load_checkpoint(saved, training[0], [training[1]])


@pytest.mark.parametrize(
    ("name", "value"), [("metric_name", None), ("metric_name", ""), ("epoch", "1"), ("model", None)]
)
def test_a_milestone_of_what_is_wrong(tmp_path, training, name, value):
    right = {"model": training[0], "metric_value": 0.5, "metric_name": "accuracy", "epoch": 1}
    with pytest.raises(CheckpointError, match=rf"^{name}( is |=)"):
        CheckpointManager(tmp_path).save_milestone_checkpoint(**{**right, name: value})


@pytest.mark.parametrize("count", [None, "3", 0, 1.5, math.nan])
def test_how_many_checkpoints_stay_is_a_number(tmp_path, count):
    with pytest.raises(CheckpointError, match=r"^max_training_checkpoints="):
        CheckpointManager(tmp_path, count)


@pytest.mark.parametrize(
    ("settings", "right", "wrong"),
    [
        (Interval, {"epochs": 1, "steps": None, "keep_last": 1}, {"keep_last": None, "epochs": "1"}),
        (
            Interval,
            {"epochs": 1, "steps": None, "keep_last": 1},
            {"keep_last": True, "epochs": False},
        ),
        (WallClock, {"minutes": 1, "keep_last": 1}, {"keep_last": None, "minutes": "1"}),
        (TopK, {"metric": "a", "mode": "max", "k": 1}, {"k": None, "metric": None, "mode": None}),
        (
            EarlyStopping,
            {"metric": "a", "mode": "max", "patience": 1, "min_delta": 0.0},
            {"patience": None, "min_delta": None},
        ),
        (
            Best,
            {"metrics": {"a": Metric(mode="max", min_delta=0.0)}, "keep": None},
            {"metrics": {"a": "max"}, "keep": "1"},
        ),
        (Sparsity, SPARSITY, {"targets": 0.5, "tolerance": None, "settled": None, "min_delta": None}),
    ],
)
def test_settings_of_policies_are_of_their_types_when_they_are_made(settings, right, wrong):
    settings(**right)
    for name, value in wrong.items():
        with pytest.raises(CheckpointError, match=rf"^checkpoint\.policy\.\w+\.{name}=.* must be "):
            settings(**{**right, name: value})
