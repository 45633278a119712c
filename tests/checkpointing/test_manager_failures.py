"""Real failures and the background: what was there stays, what is lost is reported, training continues."""

import errno
import math
import threading

import pytest

from peakpoint.base.errors import CheckpointError, SaveFailed
from peakpoint.checkpointing.events import Deleted, RunEnd, Saved, StepEnd
from peakpoint.checkpointing.storage import listing, locate
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import ALL, damage, files_no_larger_than, points, whole
from tests.checkpointing.policies import policy_cases as case


def test_a_successor_that_is_not_sound_deletes_nothing(world, warnings, monkeypatch):
    """The disk lies: what was written cannot be read back."""
    run = world(interval=case.interval(epochs=1, keep_last=1))
    run.epoch(0.5)
    share = Store.save

    def lying(self, roles, produce, *, expected):
        done = share(self, roles, produce, expected=expected)
        damage(self.path(done[0]))
        return done

    monkeypatch.setattr(Store, "save", lying)
    run.epoch(0.6)
    monkeypatch.undo()
    assert [m.epoch for m in run.kept] == [1, 2]
    assert run.stated(Deleted) == []
    assert len(warnings()) == 1
    assert "does not match the digest" in warnings()[0]
    assert locate.newest_verified(run.root).manifest.epoch == 1


def test_a_deletion_that_fails_does_not_stop_training(world, warnings):
    run = world(interval=case.interval(epochs=1, keep_last=1))
    run.epoch(0.5)
    stuck = run.root / run.kept[0].file
    stuck.unlink()
    stuck.mkdir()  # unlink refuses a directory
    run.epoch(0.6)
    run.epoch(0.7)
    assert [m.epoch for m in run.kept] == [3]
    assert len(warnings()) == 1
    assert "could not be deleted" in warnings()[0]
    assert "Training continues" in warnings()[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_never_saved_over_good_ones(world, warnings, bad):
    run = world(interval=case.interval(epochs=1, keep_last=1), best=case.best())
    run.epoch(0.5)
    run.weight[3] = bad
    run.epoch(0.9)
    run.manager.handle(RunEnd(2, 20, "done"))
    assert [m.epoch for m in run.kept] == [1, 1]
    assert run.weight_in("training/latest.pt") == 1.0
    refused, lost = dict.fromkeys(warnings())
    assert "w holds NaN or infinite values: this state is not saved. Lower the learning rate" in refused
    assert lost.startswith("0.9000 of epoch 2, the best_accuracy, is in no checkpoint")
    assert whole(run)


def test_a_state_that_a_checkpoint_does_not_hold_is_refused_at_once(world):
    run = world(interval=case.interval(epochs=1))
    run.extra["metadata"] = {"root": run.root}
    with pytest.raises(CheckpointError, match=r"state\['metadata'\]\['root'\] is of type pathlib"):
        run.epoch(0.5)
    assert run.kept == []


@pytest.mark.parametrize("background", [False, True])
def test_a_save_that_fails_leaves_what_was_there_and_training_goes_on(world, warnings, background):
    run = world(**ALL)
    run.attempt(background=background)
    run.epoch(0.5, loss=0.5, sparsity=0.6)
    before = [m.file for m in run.kept]
    with files_no_larger_than(1000):
        run.epoch(0.6, loss=0.4, sparsity=0.6)
        run.manager.drain()
        assert [m.file for m in run.kept] == before
        assert whole(run)
    (warning,) = warnings()
    assert warning.startswith(f"A checkpoint could not be written to {run.root}: File too large (")
    assert "; it needs " in warning
    assert warning.endswith(" are free. Training continues; older checkpoints are intact.")
    run.epoch(0.55, loss=0.6, sparsity=0.6)
    assert whole(run)
    assert run.kept[-1].epoch == 3


def test_with_one_to_keep_and_no_room_for_the_second_the_first_stays(world):
    run = world(interval=case.interval(epochs=1, keep_last=1))
    run.epoch(0.5)
    with files_no_larger_than(1000):
        run.epoch(0.6)
        assert [m.epoch for m in run.kept] == [1]
        assert whole(run)
    run.epoch(0.7)
    assert [m.epoch for m in run.kept] == [3]
    assert whole(run)


def test_a_save_that_fails_stops_the_run_when_asked_to(world):
    run = world(interval=case.interval(epochs=1))
    run.attempt(on_error="stop")
    run.epoch(0.5)
    with files_no_larger_than(1000):
        run.epoch(0.6)
        with pytest.raises(SaveFailed, match=r"File too large \(.*\); it needs .* are free") as stop:
            run.manager.drain()
    assert str(stop.value).endswith(" are free. Older checkpoints are intact.")
    assert stop.value.errno == errno.EFBIG
    assert 0 < run.kept[0].bytes == stop.value.needed < stop.value.free
    assert "\n" not in str(stop.value)
    assert [m.epoch for m in run.kept] == [1]
    assert whole(run)


def test_milestones_that_cannot_be_written_hold_up_no_rolling_save_and_come_late(world):
    """Late, a milestone is neither the newest checkpoint nor what `latest` names."""
    run = world(interval=case.interval(epochs=1, keep_last=2), best=case.best())
    run.epoch(0.5)
    (run.root / "milestone").rename(run.root / "aside")
    (run.root / "milestone").write_text("in the way")
    run.epoch(0.9)
    for _ in range(3):
        run.epoch(0.6)
    assert [m.epoch for m in run.kept] == [4, 5]
    (run.root / "milestone").unlink()
    (run.root / "aside").rename(run.root / "milestone")
    run.manager.close()
    assert run.weight_in("milestone/best_accuracy_0.9000_epoch_0002.pt") == 2.0
    assert points(run.root / "milestone" / "best_accuracy.pt") == "best_accuracy_0.9000_epoch_0002.pt"
    assert run.weight_in("training/latest.pt") == 5.0
    assert locate.newest_verified(run.root).manifest.epoch == 5
    run.attempt().epoch(0.6)
    assert [m.epoch for m in run.kept if m.tier == "milestone"] == [2]
    assert whole(run)


def test_a_pointer_stays_with_the_newest_when_an_older_milestone_comes_late(world):
    run = world(best=case.best(keep=9))
    run.epoch(0.5)
    with files_no_larger_than(1000):
        run.epoch(0.9)
        run.manager.drain()
    in_the_way = run.root / "milestone" / "best_accuracy_0.9000_epoch_0002.pt"
    in_the_way.mkdir()
    run.epoch(0.95)
    run.manager.drain()
    in_the_way.rmdir()
    run.manager.close()
    assert [m.epoch for m in run.kept if m.tier == "milestone"] == [1, 2, 3]
    assert points(run.root / "milestone" / "best_accuracy.pt") == "best_accuracy_0.9500_epoch_0003.pt"


@pytest.mark.parametrize("moment", ["epoch", "end", "close"])
def test_a_save_that_failed_is_tried_again_when_nothing_newer_is_to_be_saved(world, moment):
    run = world(interval=case.interval(epochs=2))
    run.epoch(0.5)
    with files_no_larger_than(1000):
        run.epoch(0.6)
        run.manager.drain()
    assert run.kept == []
    if moment == "epoch":
        run.epoch(0.7)
    elif moment == "end":
        run.manager.handle(RunEnd(2, 20, "done"))
    else:
        run.manager.close()
    assert run.weight_in(listing.manifests(run.root)[-1].file) == 2.0
    assert whole(run)


def test_half_of_the_roles_written_is_repaired_by_the_second_try(world):
    run = world(best=case.best(), interval=case.interval(epochs=1))
    (run.root / "training").rename(run.root / "aside")
    (run.root / "training").write_text("in the way")
    run.epoch(0.5)
    run.manager.drain()
    assert [m.tier for m in run.kept] == ["milestone"]
    (run.root / "training").unlink()
    (run.root / "aside").rename(run.root / "training")
    run.manager.handle(RunEnd(1, 10, "done"))
    assert [m.tier for m in run.kept] == ["milestone", "training"]
    assert whole(run)


def test_in_the_background_the_state_of_the_moment_is_saved(world):
    run = world(interval=case.interval(epochs=1, keep_last=9))
    run.attempt(background=True)
    for _ in range(5):
        run.epoch(0.5)
        run.weight += 0.5  # training continues at once
    assert [run.weight_in(m.file) for m in run.kept] == [1.0, 2.5, 4.0, 5.5, 7.0]


def test_training_waits_for_the_copy_and_for_the_save_before_and_each_wait_is_recorded(world, monkeypatch):
    run = world(interval=case.interval(epochs=1, keep_last=9))
    run.attempt(background=True)
    release, flying = threading.Event(), []
    save = Store.save

    def slow(self, roles, produce, *, expected):
        flying.append(roles[0].epoch)
        assert len(flying) == 1  # one in flight
        release.wait(30)
        done = save(self, roles, produce, expected=expected)
        flying.remove(roles[0].epoch)
        return done

    monkeypatch.setattr(Store, "save", slow)
    run.epoch(0.5)
    assert run.facts == []  # not written, and training continues
    run.manager.handle(StepEnd(2, 11))
    threading.Timer(0.2, release.set).start()
    run.epoch(0.5)
    first, second = run.stated(Saved)
    assert first.stall_s < 0.15 < second.stall_s
    assert second.total_s >= second.stall_s
    assert first.total_s > 0.15


def test_a_bug_while_writing_is_not_swallowed(world):
    run = world(interval=case.interval(epochs=1))
    run.attempt(background=True)
    run.policies["interval"].keeps = lambda manifests: 1 / 0
    run.manager.policies["interval"].keeps = lambda manifests: 1 / 0
    run.epoch(0.5)
    with pytest.raises(ZeroDivisionError):
        run.manager.drain()


def test_nothing_depends_on_the_pointers(world):
    run = world(interval=case.interval(epochs=1, keep_last=2), best=case.best())
    for accuracy in (0.5, 0.6):
        run.epoch(accuracy)
    for link in (p for p in run.root.rglob("*.pt") if p.is_symlink()):
        link.unlink()
        link.symlink_to("nowhere.pt")
    run.attempt()
    assert locate.newest_verified(run.root).manifest.epoch == 2
    run.epoch(0.7)
    assert [m.epoch for m in run.kept if m.tier == "training"] == [2, 3]
    assert run.weight_in("training/latest.pt") == 3.0
    assert whole(run)
