"""Real policies, real files: what is written, under which names, and what stays."""

import json
import logging
import math

import pytest
import torch

from peakpoint.checkpointing.events import (
    Deleted,
    EpochEnd,
    EvalEnd,
    Interrupted,
    RunEnd,
    Saved,
    StepEnd,
    Verified,
)
from peakpoint.checkpointing.policy import Save
from peakpoint.checkpointing.retention import kept
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage.manifest import MILESTONE, Manifest
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import ALL, Asks, points, saved, whole
from tests.checkpointing.policies import policy_cases as case


def test_one_moment_is_one_write_under_many_names(world):
    run = world(**ALL)
    run.epoch(0.85, loss=0.5, sparsity=0.71)
    assert run.files("training") == ["checkpoint_epoch_0001_step_00000010.pt"]
    assert run.files("milestone") == [
        "best_accuracy_0.8500_epoch_0001.pt",
        "best_accuracy_at_sparsity_0.50_0.8500_epoch_0001.pt",
        "best_accuracy_at_sparsity_0.70_0.8500_epoch_0001.pt",
        "best_loss_0.5000_epoch_0001.pt",
        "top_k_accuracy_0.8500_epoch_0001.pt",
    ]
    assert len({(run.root / m.file).stat().st_ino for m in run.kept}) == 1
    assert len({m.digest for m in run.kept}) == 1
    (fact,) = run.stated(Saved)
    assert fact.file == "training/checkpoint_epoch_0001_step_00000010.pt"
    assert set(fact.tags) == {
        "interval", "best_accuracy", "best_loss", "top_k",
        "best_accuracy_at_sparsity_0.50", "best_accuracy_at_sparsity_0.70",
    }  # fmt: skip
    assert whole(run)
    for tag in ("best_accuracy", "best_loss", "best_accuracy_at_sparsity_0.70"):
        assert points(run.root / "milestone" / f"{tag}.pt").startswith(f"{tag}_0.")


@pytest.mark.parametrize("name", [*ALL, "early_stopping", "wall_clock"])
def test_each_policy_works_alone(world, name):
    settings = ALL | {"early_stopping": case.early_stopping(2), "wall_clock": case.wall_clock(minutes=1e9)}
    run = world(**{name: settings[name]})
    stops = [run.epoch(a, loss=1 - a, sparsity=0.75) for a in (0.5, 0.6, 0.6, 0.6)]
    assert [bool(s) for s in stops] == [False] * 3 + [name == "early_stopping"]
    run.manager.handle(RunEnd(4, 40, "done"))
    assert run.kept[-1].epoch == 4  # whatever the policy, the end is there to resume from
    assert whole(run)
    owned = {p for m in run.kept for p in m.policies}
    assert owned <= {name, ""}


def test_the_manifest_says_what_and_why(world):
    run = world(**ALL)
    run.epoch(0.85, loss=0.5, sparsity=0.71)
    found = {m.file: m for m in run.kept}
    best = found["milestone/best_accuracy_0.8500_epoch_0001.pt"]
    assert (best.tags, best.policies) == (("best_accuracy",), ("best",))
    assert best.reasons == ("accuracy 0.8500 is the first",)
    assert (best.epoch, best.global_step, best.sparsity) == (1, 10, 0.71)
    assert best.metrics == {"accuracy": 0.85, "loss": 0.5}
    assert (best.run, best.git_commit) == ("run", "abc")
    assert [m.sequence for m in run.kept] == [1, 2, 3, 4, 5, 6]
    state = serialize.load(run.root / best.file)
    assert state["metrics"] == best.metrics
    assert state["checkpoint_type"] == "training"  # one file for both tiers, with the whole state
    assert set(state["policies"]) == set(ALL)


def test_the_last_three_stay_and_each_goes_only_after_its_successor_is_sound(world):
    run = world(interval=case.interval(epochs=1, keep_last=3))
    for _ in range(6):
        run.epoch(0.5)
    assert [m.epoch for m in run.kept] == [4, 5, 6]
    assert whole(run)
    names = [f"training/checkpoint_epoch_{e:04d}_step_{10 * e:08d}.pt" for e in range(1, 7)]
    expected = [Saved] * 3 + [Saved, Verified, Deleted] * 3
    assert [type(fact) for fact in run.facts] == expected
    assert [f.file for f in run.stated(Saved)] == names
    assert [f.file for f in run.stated(Verified)] == names[3:]
    assert [f.file for f in run.stated(Deleted)] == names[:3]


def test_latest_is_the_newest_state_whatever_was_saved(world):
    run = world(best=case.best(), interval=case.interval(steps=25))
    link = run.root / "training" / "latest.pt"
    for accuracy in (0.5, 0.6, 0.7):
        run.epoch(accuracy)
        run.manager.drain()
        assert serialize.load(link)["epoch"] == run.epochs
        assert points(link) == run.files("training")[-1]
        assert len(run.files("training")) == 1  # the one before is kept by nobody
    assert run.files("milestone") == ["best_accuracy_0.7000_epoch_0003.pt"]
    run.epochs += 1
    run.manager.handle(StepEnd(4, 50))
    assert serialize.load(link)["epoch"] == 4
    assert whole(run)


def test_a_milestone_outlives_the_training_file_that_shares_its_bytes(world):
    run = world(interval=case.interval(epochs=1, keep_last=1), best=case.best())
    for accuracy in (0.5, 0.9, 0.6, 0.7):
        run.epoch(accuracy)
    assert [(m.tier, m.epoch) for m in run.kept] == [("milestone", 2), ("training", 4)]
    assert run.weight_in("milestone/best_accuracy_0.9000_epoch_0002.pt") == 2.0
    assert points(run.root / "milestone" / "best_accuracy.pt") == "best_accuracy_0.9000_epoch_0002.pt"


def test_the_checkpoint_that_was_resumed_from_stays(world):
    run = world(interval=case.interval(epochs=1, keep_last=2))
    for _ in range(2):
        run.epoch(0.5)
    first = run.kept[0].file
    run.attempt(resumed_from=first)
    for _ in range(4):
        run.epoch(0.5)
    present = run.kept
    assert [m.epoch for m in present] == [1, 5, 6]
    assert present[0].file == first
    assert (
        kept(present, {"interval": run.manager.policies["interval"]}, first)[present[0]]
        == "this run was resumed from it"
    )


def test_a_policy_that_is_no_longer_configured_keeps_its_milestones(world):
    run = world(interval=case.interval(epochs=1, keep_last=1), best=case.best(), top_k=case.top_k(2))
    for accuracy in (0.5, 0.9, 0.6):
        run.epoch(accuracy)
    before = run.files("milestone")
    del run.policies["best"], run.policies["top_k"]
    run.attempt()
    for accuracy in (0.99, 0.7):
        run.epoch(accuracy)
    assert run.files("milestone") == before
    assert len(run.files("training")) == 1
    assert whole(run)


def test_a_role_that_its_policy_no_longer_gives_out_keeps_its_milestones(world):
    """Resumed with other metrics: the policy is there, and knows nothing of the best loss."""
    run = world(best=case.best(accuracy="max", loss="min"))
    for accuracy, loss in ((0.5, 1.0), (0.6, 0.9)):
        run.epoch(accuracy, loss=loss)
    (before,) = (name for name in run.files("milestone") if "best_loss" in name)
    counters = run.counters
    run.policies = {"best": case.best(accuracy="max").build()}
    run.attempt().manager.load_state_dict(counters)
    for accuracy in (0.7, 0.8):
        run.epoch(accuracy, loss=0.1)
    assert run.files("milestone") == ["best_accuracy_0.8000_epoch_0004.pt", before]
    assert whole(run)


def test_files_of_another_run_are_never_deleted(world):
    other = world(run="other", interval=case.interval(epochs=1, keep_last=1), best=case.best())
    other.epoch(0.99)
    theirs = [m.file for m in other.kept]
    run = world(interval=case.interval(epochs=1, keep_last=1), best=case.best())
    for accuracy in (0.5, 0.6, 0.7):
        run.epoch(accuracy)
    assert {m.run for m in run.kept} == {"other", "run"}
    assert set(theirs) <= {m.file for m in run.kept}
    assert sorted(m.epoch for m in run.kept if m.run == "run") == [3, 3]
    assert whole(run)


def test_files_that_are_no_checkpoints_are_left_alone(world):
    run = world(interval=case.interval(epochs=1, keep_last=1))
    notes = [run.root / "training" / "mine.pt", run.root / "milestone" / "notes.json", run.root / "x.pt"]
    for note in notes:
        note.write_text("{}")
    for _ in range(3):
        run.epoch(0.5)
    assert all(note.read_text() == "{}" for note in notes)


def test_the_end_of_a_run_is_saved_unless_it_was_just_saved(world):
    run = world(interval=case.interval(epochs=2))
    for _ in range(2):
        run.epoch(0.5)
    assert [m.epoch for m in run.kept] == [2]
    run.manager.handle(RunEnd(2, 20, "all epochs are done"))
    assert len(run.stated(Saved)) == 1
    run.epoch(0.5)
    run.manager.handle(RunEnd(3, 30, "all epochs are done"))
    assert [(m.epoch, m.tags, m.reasons) for m in run.kept][-1] == (3, ("last",), ("the end of the run",))
    run.manager.handle(RunEnd(3, 30, "again"))
    run.attempt()
    run.manager.load_state_dict({})
    run.manager.handle(RunEnd(3, 30, "resumed, and nothing to do"))
    assert len(run.stated(Saved)) == 2


def test_an_interruption_saves_the_step_in_hand(world):
    run = world(interval=case.interval(epochs=1))
    run.epoch(0.5)
    run.weight += 1
    run.manager.handle(StepEnd(2, 11))
    run.manager.handle(Interrupted(2, 11, 15))
    last = run.kept[-1]
    assert (last.tags, last.reasons, last.global_step) == (("last",), ("interrupted",), 11)
    assert last.metrics == {}  # those of step 10 are not those of step 11
    assert last.sparsity is None
    assert run.weight_in(last.file) == 2.0


def test_metrics_that_are_missing_or_not_finite_are_recorded_and_never_best(world):
    run = world(interval=case.interval(epochs=1, keep_last=9), best=case.best(), top_k=case.top_k(1))
    for value in (0.5, math.nan, None, math.inf, 0.6):
        run.epoch(value)
    assert [m.epoch for m in run.kept if m.tier == MILESTONE] == [5, 5]
    values = [m.metrics.get("accuracy") for m in run.kept if m.tier == "training"]
    assert [repr(v) for v in values] == ["0.5", "nan", "None", "inf", "0.6"]
    raw = json.loads((run.root / "training" / "checkpoint_epoch_0002_step_00000020.json").read_text())
    assert raw["metrics"] == {"accuracy": "nan"}
    assert whole(run)


def test_a_step_and_the_epoch_that_ends_with_it_are_one_checkpoint(world):
    run = world(interval=case.interval(epochs=1, steps=10, keep_last=9))
    run.manager.handle(StepEnd(1, 10), EvalEnd(1, 10, {"accuracy": 0.5}, 0.0, 0), EpochEnd(1, 10))
    assert run.files("training") == ["checkpoint_epoch_0001_step_00000010.pt"]
    assert run.kept[-1].tags == ("interval", "interval")
    assert run.kept[-1].metrics == {"accuracy": 0.5}


def test_of_two_saves_of_one_step_the_newer_stands(world):
    """As a resumed run makes them that was interrupted while it evaluated."""
    run = world(interval=case.interval(epochs=1, steps=10, keep_last=2))
    run.epoch(0.4)
    run.manager.handle(StepEnd(2, 20))
    run.epoch(0.5)
    assert [(m.epoch, m.metrics) for m in run.kept] == [(1, {"accuracy": 0.4}), (2, {"accuracy": 0.5})]
    assert points(run.root / "training" / "latest.pt") == run.kept[-1].file.split("/")[1]


def test_policies_get_their_counters_back_by_name_and_what_has_no_taker_is_reported(world, caplog):
    caplog.set_level(logging.INFO, "peakpoint")
    run = world(best=case.best(), stop=case.early_stopping(patience=3))
    for accuracy in (0.9, 0.5):
        run.epoch(accuracy)
    saved_state = json.loads(json.dumps(run.counters))
    run.policies = {"stop": case.early_stopping(patience=3).build(), "new": case.top_k(1).build()}
    run.attempt()
    caplog.clear()
    run.manager.load_state_dict(saved_state)
    assert [r.getMessage() for r in caplog.records] == [
        "checkpoint policy new is new: it starts from nothing",
        "checkpoint policy best is no longer configured: its counters are dropped, its files stay",
    ]
    assert run.epoch(0.5) is None
    assert run.epoch(0.5) is not None


def test_a_file_may_have_the_name_of_its_role(world):
    run = world(mine=Asks({10: [Save("favourite", "because", MILESTONE, "favourite")]}))
    run.weight += 1
    run.manager.handle(StepEnd(1, 10))
    assert run.weight_in("milestone/favourite.pt") == 1.0
    assert whole(run)


def test_several_wishes_of_one_moment_for_the_training_tier_are_one_file(world):
    run = world(a=Asks({10: [Save("a", "first")]}), b=Asks({10: [Save("b", "second"), Save("c", "third")]}))
    run.manager.handle(StepEnd(1, 10))
    (only,) = run.kept
    assert (only.tags, only.policies, only.reasons) == (
        ("a", "b", "c"), ("a", "b", "b"), ("first", "second", "third"),
    )  # fmt: skip


def test_the_first_stop_wins_and_the_moment_is_saved_all_the_same(world):
    run = world(
        a=case.early_stopping(patience=1), b=case.early_stopping(patience=2), interval=case.interval(epochs=1)
    )
    assert run.epoch(0.5) is None
    assert "for 1 evaluations" in run.epoch(0.4).reason
    assert run.kept[-1].epoch == 2


def test_a_restart_in_a_directory_goes_on_counting(world):
    run = world(interval=case.interval(epochs=1, keep_last=9))
    run.epoch(0.5)
    saved(Store(run.root, "run"), "training/b.pt", global_step=5)
    run.attempt()
    run.epoch(0.5)
    assert [m.sequence for m in run.kept] == [1, 2, 3]
    assert isinstance(run.kept[0], Manifest)


def test_events_of_a_moment_are_one_moment(world):
    """An evaluation in the middle of an epoch is saved with its metrics."""
    run = world(best=case.best())
    run.manager.handle(EvalEnd(1, 7, {"accuracy": 0.5}, 0.0, 0))
    run.manager.handle(EvalEnd(1, 9, {"accuracy": 0.4}, 0.0, 0), EpochEnd(1, 9))
    assert [m.global_step for m in run.kept] == [7, 7]
    assert torch.equal(serialize.load(run.root / run.kept[0].file)["model_state_dict"]["w"], run.weight)
