"""A peak is not lost: it waits for its save, is reported when it gives way, and outlives a resume."""

import math

import pytest

from peakpoint.checkpointing.events import RunEnd
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import locate, quarantine
from tests.checkpointing.checkpoint_cases import ALL, World, files_no_larger_than, points, whole
from tests.checkpointing.policies import policy_cases as case


def test_the_peak_of_a_save_that_failed_is_not_lost(world, warnings):
    """The best epoch falls into a moment without space; the next save brings it along."""
    run = world(interval=case.interval(epochs=1), best=case.best())
    run.epoch(0.5)
    with files_no_larger_than(1000):
        run.epoch(0.9)
        run.manager.drain()
    run.epoch(0.6)
    assert run.weight_in("milestone/best_accuracy_0.9000_epoch_0002.pt") == 2.0
    assert points(run.root / "milestone" / "best_accuracy.pt") == "best_accuracy_0.9000_epoch_0002.pt"
    assert run.kept[-1].epoch == 3
    assert serialize.load(run.root / "training" / "latest.pt")["epoch"] == 3
    assert whole(run)


def test_a_rolling_save_that_fails_too_does_not_push_the_peak_out(world, warnings):
    """Three saves fall into a moment without space: the best epoch, and two that are only the newest."""
    run = world(interval=case.interval(epochs=1), best=case.best())
    run.epoch(0.5)
    with files_no_larger_than(1000):
        for accuracy in (0.9, 0.6, 0.7):
            run.epoch(accuracy)
        run.manager.drain()
    run.manager.handle(RunEnd(4, 40, "done"))  # what holds the last state was let go for the peak
    assert run.weight_in("milestone/best_accuracy_0.9000_epoch_0002.pt") == 2.0
    assert points(run.root / "milestone" / "best_accuracy.pt") == "best_accuracy_0.9000_epoch_0002.pt"
    newest = locate.newest_verified(run.root).manifest
    assert (newest.tier, newest.epoch, run.weight_in(newest.file)) == ("training", 4, 4.0)
    assert not [line for line in warnings() if line.startswith("Lost")]
    assert whole(run)


def test_a_peak_that_gives_way_to_a_higher_one_is_reported(world, warnings):
    run = world(interval=case.interval(epochs=1), best=case.best(keep=2))
    run.epoch(0.5)
    with files_no_larger_than(1000):
        run.epoch(0.8)
        run.epoch(0.9)
        run.manager.drain()
    (lost,) = [line for line in warnings() if "is lost" in line]
    assert lost == (
        "best_accuracy of epoch 2 could not be written and is lost (accuracy 0.8000 beats 0.5000 of epoch "
        "1): free some disk space for the next."
    )
    run.epoch(0.6)
    assert [m.epoch for m in run.kept if m.tier == "milestone"] == [1, 3]
    assert whole(run)


def test_a_peak_that_finds_no_room_to_the_end_is_reported(world, warnings):
    run = world(best=case.best())
    run.epoch(0.5)
    with files_no_larger_than(1000):
        run.epoch(0.9)
        run.manager.close()
    assert warnings()[-2].startswith("best_accuracy of epoch 2 could not be written")
    assert [m.epoch for m in run.kept if m.tier == "milestone"] == [1]


def test_after_a_loss_the_best_of_the_rest_is_saved(world, warnings):
    """The peak holds NaN weights: refused. What comes after it must beat what is on disk, and no more."""
    run = world(**ALL)
    run.epoch(0.5, loss=0.5, sparsity=0.6)
    run.weight[3] = math.nan
    run.epoch(0.9, loss=0.1, sparsity=0.6)
    run.weight[3] = 0
    run.epoch(0.4, loss=0.6, sparsity=0.6)
    run.epoch(0.6, loss=0.4, sparsity=0.6)
    assert {(m.tags, m.epoch) for m in run.kept if m.tier == "milestone"} == {
        (("best_accuracy",), 4),
        (("best_loss",), 4),
        (("best_accuracy_at_sparsity_0.50",), 4),
        (("top_k",), 1),
        (("top_k",), 4),
    }
    lost = "0.9000 of epoch 2, the best_accuracy, is in no checkpoint: the next value that beats 0.5000"
    assert f"{lost} of epoch 1 is saved." in warnings()
    assert whole(run)


@pytest.mark.parametrize("there", ["another", "none"])
def test_a_peak_whose_file_is_gone_is_reported_at_the_resume_and_is_no_bar(world, warnings, there):
    """As when the process was killed while the peak waited for a disk, or its file was damaged since."""
    run = world(interval=case.interval(epochs=1), best=case.best(keep=2))
    if there == "another":
        run.epoch(0.5)
    run.epoch(0.9)
    run.epoch(0.6)
    run.manager.close()
    (peak,) = [m for m in run.kept if m.metrics["accuracy"] == 0.9 and m.tier == "milestone"]
    quarantine.quarantine(run.root, peak.file, "damaged")
    state = serialize.load(run.root / "training" / "latest.pt")["policies"]
    for policy in run.policies.values():
        policy.__post_init__()
    run.attempt().manager.load_state_dict(state)
    assert warnings()[-1].startswith("0.9000 of epoch ")
    if there == "another":
        assert warnings()[-1].endswith("the next value that beats 0.5000 of epoch 1 is saved.")
    run.epoch(0.7)
    assert run.kept[-2].tags == ("best_accuracy",)
    assert run.kept[-2].metrics["accuracy"] == 0.7


def test_a_resume_that_finds_every_peak_says_nothing(world, warnings):
    run = world(**ALL)
    for accuracy in (0.5, 0.9, 0.6):
        run.epoch(accuracy, loss=1 - accuracy, sparsity=0.8)
    run.manager.close()
    state = serialize.load(run.root / "training" / "latest.pt")["policies"]
    run.attempt().manager.load_state_dict(state)
    assert warnings() == []
    run.epoch(0.7, loss=0.3, sparsity=0.8)
    assert [m.epoch for m in run.kept if "best_accuracy" in m.tags] == [2]


def test_a_fork_goes_on_from_the_peaks_of_its_origin(world, warnings, tmp_path):
    origin = world(best=case.best())
    origin.epoch(0.9)
    origin.manager.close()
    fork = World(tmp_path / "fork", run="fork", best=case.best().build())
    fork.manager.load_state_dict(serialize.load(origin.root / "training" / "latest.pt")["policies"])
    fork.epoch(0.3)
    fork.epoch(0.4)
    assert fork.kept == []
    assert warnings() == []
    fork.epoch(0.95)
    assert [m.epoch for m in fork.kept if "best_accuracy" in m.tags] == [3]
