"""The policies that save by the calendar: interval and wall_clock."""

import pytest

from peakpoint.checkpointing.events import EpochEnd, Interrupted, RunEnd, StepEnd
from peakpoint.checkpointing.policy import Outlook, Save
from peakpoint.checkpointing.storage.manifest import TRAINING
from tests.checkpointing.policies import policy_cases as case


@pytest.mark.parametrize(
    ("settings", "event", "reason"),
    [
        (case.interval(epochs=10), EpochEnd(10, 100), "epoch 10, every 10"),
        (case.interval(epochs=10), EpochEnd(11, 110), None),
        (case.interval(epochs=10), EpochEnd(9, 100), None),
        (case.interval(epochs=10), EpochEnd(9, 100, done=10), "epoch 9, every 10"),
        (case.interval(epochs=10), EpochEnd(10, 110, done=11), None),
        (case.interval(epochs=1), EpochEnd(1, 10), "epoch 1, every 1"),
        (case.interval(steps=100), StepEnd(1, 200), "step 200, every 100"),
        (case.interval(steps=100), StepEnd(100, 201), None),
        (case.interval(steps=100), EpochEnd(100, 200), None),
        (case.interval(epochs=10), StepEnd(10, 100), None),
        (case.interval(epochs=5, steps=7), EpochEnd(5, 50), "epoch 5, every 5"),
        (case.interval(epochs=5, steps=7), StepEnd(5, 49), "step 49, every 7"),
        (case.interval(), EpochEnd(10, 100), None),
        (case.interval(), StepEnd(10, 100), None),
        (case.interval(epochs=1, steps=1), case.evaluation(1, 0.5), None),
        (case.interval(epochs=1, steps=1), RunEnd(1, 10, "done"), None),
        (case.interval(epochs=1, steps=1), Interrupted(1, 10, 15), None),
    ],
)
def test_interval_saves_at_multiples(settings, event, reason):
    expected = [] if reason is None else [Save("interval", reason, TRAINING)]
    assert settings.build().decide(event) == expected


def test_the_newest_by_sequence_are_kept_and_nothing_of_others():
    manifests = [case.manifest(n, "interval", epoch=9 - n) for n in (4, 1, 3, 2)]
    manifests.append(case.manifest(5, "wall_clock"))
    policy = case.interval(keep_last=2)
    assert case.kept(policy, manifests) == [3, 4]
    assert set(policy.keeps(manifests).values()) == {"one of the last 2 of interval"}
    assert case.kept(case.wall_clock(keep_last=1), manifests) == [5]
    assert case.kept(policy, manifests[:1]) == [4]
    assert case.kept(policy, []) == []


@pytest.mark.parametrize(
    ("settings", "events", "for_good"),
    [
        (case.interval(epochs=2, keep_every=3), [EpochEnd(n, 10 * n) for n in range(1, 14)], [6, 12]),
        (case.interval(steps=5, keep_every=2), [StepEnd(1, n) for n in range(1, 31)], [10, 20, 30]),
        (case.interval(epochs=1), [EpochEnd(n, 10 * n) for n in range(1, 9)], []),
    ],
)
def test_every_nth_save_is_marked_as_kept_for_good(settings, events, for_good):
    marked = [
        event.epoch if isinstance(event, EpochEnd) else event.step
        for event, saves in zip(events, case.answers(settings.build(), events), strict=True)
        if "interval_kept" in [save.tag for save in saves]
    ]
    assert marked == for_good


def test_what_is_kept_for_good_stays_while_the_setting_does():
    tags = {n: ("interval", "interval_kept") if n % 3 == 0 else ("interval",) for n in range(1, 10)}
    manifests = [case.manifest(n, *each) for n, each in tags.items()]
    keeping = case.interval(epochs=1, keep_last=2, keep_every=3)
    assert case.kept(keeping, manifests) == [3, 6, 8, 9]
    assert keeping.keeps(manifests)[manifests[2]] == "kept for good by interval"
    assert case.kept(case.interval(epochs=1, keep_last=2), manifests) == [8, 9]


@pytest.mark.parametrize(("keep_every", "count"), [(None, 3), (4, 5), (1, 10)])
def test_the_estimate_counts_what_is_kept_for_good(keep_every, count):
    planned = Outlook(epochs=10, steps=100, evaluations=10, sparsity=0.0)
    assert case.interval(epochs=1, keep_every=keep_every).at_most(planned) == count


class Clock:
    def __init__(self):
        self.now = 5.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr("time.monotonic", made)
    return made


def test_wall_clock_saves_once_a_period_at_a_step(clock):
    policy = case.wall_clock(minutes=2)
    saved = []
    for step in range(1, 31):
        clock.now += 25
        saved += [(step, d.tag, d.tier) for d in policy.decide(StepEnd(1, step))]
        assert policy.decide(EpochEnd(1, step)) == []
    assert saved == [(n, "wall_clock", TRAINING) for n in (5, 10, 15, 20, 25, 30)]


def test_wall_clock_can_be_off_and_never_looks_at_the_clock_then(clock):
    policy = case.wall_clock(minutes=None)
    clock.now = 1e9
    assert policy.decide(StepEnd(1, 1)) == []


def test_wall_clock_starts_a_new_period_on_resume_and_saves_no_time(clock):
    policy = case.wall_clock(minutes=1)
    clock.now += 59
    assert policy.state_dict() == {}
    resumed = case.wall_clock(minutes=1)
    resumed.load_state_dict(policy.state_dict())
    clock.now += 2
    assert len(policy.decide(StepEnd(1, 1))) == 1
    assert resumed.decide(StepEnd(1, 1)) == []
