"""A save that comes while one is being written waits, or is left out when later ones make up for it."""

import threading

import pytest

from peakpoint.checkpointing.events import Interrupted, RunEnd, Saved, Skipped, StepEnd
from peakpoint.checkpointing.policy import Save
from peakpoint.checkpointing.state import serialize
from tests.checkpointing.checkpoint_cases import files_no_larger_than, whole
from tests.checkpointing.policies import policy_cases as case


class Counts:
    """Keeps nothing; says at each retention how many steps it had seen when the save was asked for."""

    tags = ("counts",)

    def __init__(self, heard):
        self.heard, self.seen = heard, 0

    def decide(self, event):
        self.seen += isinstance(event, StepEnd)
        return [Save("counts", "a step")] if isinstance(event, StepEnd) and event.step == 1 else []

    def keeps(self, manifests):
        self.heard.append(self.seen)
        return {}

    def state_dict(self):
        return {}

    def __deepcopy__(self, memo):
        twin = Counts(self.heard)
        twin.seen = self.seen
        return twin


def test_retention_asks_the_policies_as_they_were_when_the_save_was_asked_for(world, disk):
    """The thread is late and training has gone on: a best that is not on disk yet counts for nothing."""
    heard: list[int] = []
    run = world(counts=Counts(heard)).attempt(background=True)
    for step in (1, 2, 3):
        run.manager.handle(StepEnd(1, step))
    disk.set()
    run.manager.drain()
    assert heard == [1]


@pytest.fixture
def disk(monkeypatch):
    """A disk that takes its time: a save stays in flight until `disk.set()`."""
    go, dump = threading.Event(), serialize.dump

    def slow(*args, **kwargs):
        assert go.wait(60)
        dump(*args, **kwargs)

    monkeypatch.setattr(serialize, "dump", slow)
    yield go
    go.set()


@pytest.fixture
def run(world):
    made = world(interval=case.interval(epochs=1, keep_last=9), best=case.best())
    made.attempt(background=True, when_busy="skip")
    return made


def rolling(run):
    return [m.epoch for m in run.kept if m.tier == "training"]


def meanwhile(disk, call):
    """Make a call that must not come back before the disk is set; then set it."""
    done = []
    thread = threading.Thread(target=lambda: (call(), done.append(1)))
    thread.start()
    thread.join(0.2)
    waited = not done
    disk.set()
    thread.join(60)
    assert done
    return waited


def test_a_rolling_save_is_skipped_and_reported_and_the_next_is_written(run, disk):
    run.epoch(0.9)
    run.epoch(0.5)  # comes back although nothing is written yet
    run.epoch(0.6)
    assert run.facts == [Skipped(2, 20, ("interval",)), Skipped(3, 30, ("interval",))]
    disk.set()
    run.manager.drain()
    run.epoch(0.5)
    assert rolling(run) == [1, 4]
    assert [fact.file for fact in run.stated(Saved)][-1].endswith("epoch_0004_step_00000040.pt")
    assert len(run.stated(Skipped)) == 2
    assert whole(run)


def test_the_default_is_to_wait(run, disk):
    run.attempt(background=True)
    run.epoch(0.9)
    assert meanwhile(disk, lambda: run.epoch(0.5))
    assert rolling(run) == [1, 2]
    assert run.stated(Skipped) == []


def test_a_milestone_waits(run, disk):
    run.epoch(0.5)
    assert meanwhile(disk, lambda: run.epoch(0.9))
    assert rolling(run) == [1, 2]
    assert run.weight_in("milestone/best_accuracy_0.9000_epoch_0002.pt") == 2.0
    assert run.stated(Skipped) == []


@pytest.mark.parametrize("end", [RunEnd(2, 20, "done"), Interrupted(2, 20, 15)])
def test_the_last_waits_also_when_its_state_was_skipped_before(run, disk, end):
    run.epoch(0.9)
    run.epoch(0.5)
    assert meanwhile(disk, lambda: run.manager.handle(end))
    assert rolling(run) == [1, 2]
    assert run.weight_in("training/latest.pt") == 2.0


def test_without_a_thread_nothing_is_skipped(run, disk):
    disk.set()
    run.attempt(background=False, when_busy="skip")
    for _ in range(3):
        run.epoch(0.5)
    assert rolling(run) == [1, 2, 3]
    assert run.stated(Skipped) == []


def test_a_save_that_failed_is_retried_by_the_next_that_is_not_skipped(run, disk):
    with files_no_larger_than(1000):
        run.epoch(0.9)
        run.epoch(0.5)
        disk.set()
        run.manager.drain()
    run.epoch(0.5)
    assert run.weight_in("milestone/best_accuracy_0.9000_epoch_0001.pt") == 1.0
    assert rolling(run)[-1] == 3
    assert whole(run)


def test_a_bug_of_the_writer_comes_out_once(run, monkeypatch):
    monkeypatch.setattr(run.manager, "_write", lambda _: 1 / 0)
    run.epoch(0.9)
    with pytest.raises(ZeroDivisionError):
        run.manager.drain()
    run.manager.drain()


def test_close_ends_the_thread_after_the_save(run, disk):
    disk.set()
    before = threading.active_count()
    run.attempt(background=True)
    run.epoch(0.9)
    run.manager.close()
    assert rolling(run) == [1]
    assert threading.active_count() == before
