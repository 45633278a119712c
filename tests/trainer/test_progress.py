"""Which steps were evaluated is saved in a few numbers, however long the run."""

import copy
import random

import pytest

from peakpoint.checkpointing.state import serialize
from peakpoint.trainer.state import Progress
from tests.conftest import TINY, rows
from tests.trainer.parts import interrupted, parts


def noted(steps):
    progress = Progress()
    for step in steps:
        progress.note_evaluation(step)
    return progress


@pytest.mark.parametrize(
    ("steps", "ranges"),
    [
        ([], 0),
        ([7], 1),
        ([7, 9], 1),
        (range(391, 391 * 100_001, 391), 1),  # each epoch of 100,000
        ([5, 8, 16, 24, 32], 2),  # max_steps ended the first attempt
        ([8, 16, 20, 32, 48, 64], 3),  # and another batch size
    ],
)
def test_a_regular_run_takes_a_few_numbers(steps, ranges):
    progress = noted(steps)
    assert progress.evaluated_steps == set(steps)
    assert len(progress.evaluated) <= ranges


@pytest.mark.parametrize("seed", range(20))
def test_any_steps_come_back(seed):
    draw = random.Random(seed)
    steps = sorted(draw.sample(range(1, 200), draw.randrange(1, 60)))
    assert noted(steps).evaluated_steps == set(steps)
    half = len(steps) // 2
    again = Progress()
    again.load_state_dict({"evaluated": noted(steps[:half]).evaluated, "step": steps[half]})
    for step in steps[half:]:
        again.note_evaluation(step)
    assert again.evaluated == noted(steps).evaluated


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path):
    """It held each evaluation whole."""
    saved = interrupted(parts(), tmp_path, 20)
    before = copy.deepcopy(saved)
    del before["progress"]["evaluated"]
    facts = {"metrics": {"loss": 1.0}, "sparsity": 0.0, "mask_version": 0}
    before["progress"]["evaluations"] = [{"epoch": e, "step": 8 * e, **facts} for e in (1, 2)]
    again = parts()
    again.state.restore(before)
    assert again.state.progress.evaluated_steps == {8, 16}
    assert again.state.gather()["progress"] == saved["progress"]


def test_a_checkpoint_does_not_grow_with_the_number_of_evaluations(train, tmp_path):
    kept = ("checkpoint.interval=1", "checkpoint.keep_last=99", "hydra.run.dir=run")
    train(*TINY, "epochs=12", "max_steps=90", "test=false", *kept).succeeded()
    assert len(rows(tmp_path / "run", "eval")) == 12
    files = sorted((tmp_path / "run" / "checkpoints" / "training").glob("checkpoint_*.pt"))
    first, last = (serialize.load(file)["progress"] for file in (files[1], files[-1]))
    assert (first["epoch"], last["epoch"]) == (2, 11)
    assert last["evaluated"] == [[8, 88, 8], [90, 90, 1]]
    assert len(repr(last)) < len(repr(first)) + 30


def test_two_rhythms_of_evaluations_do_not_grow_with_the_run():
    progress, steps = Progress(), sorted({*range(100, 39_001, 100), *range(391, 39_101, 391)})
    for step in steps:
        progress.note_evaluation(step)
    assert progress.evaluated_steps == set(steps)
    assert len(progress.evaluated) < 8
