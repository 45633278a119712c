"""Uploads beside a training: the queue, the waits, what a bad network can do, and what is reported of it."""

import contextlib
import logging
import random
import signal

import pytest

from peakpoint.base import digests
from peakpoint.base.digests import of_bytes
from peakpoint.checkpointing.remote import background
from peakpoint.checkpointing.remote.client import RemoteError
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.manifest import unsealed
from tests.checkpointing.checkpoint_cases import damage
from tests.checkpointing.remote.mirror_cases import World
from tests.remotes import Fault


@pytest.mark.parametrize("kind", ["lie", "truncate", "reset", "drop", "hang", "busy", "spoil", "delay"])
def test_every_fault_that_passes_is_got_over(away, s3, kind):
    for _ in range(3):
        away.save()
    s3.proxy.faults = [
        Fault(kind, what, 1) for what in (b"best_1.pt", b"best_2.json", b"record", b"best_3.pt")
    ]
    away.copy(timeout_s=1 if kind == "hang" else 10)
    assert away.there() == [f"milestone/best_{n}.pt" for n in (1, 2, 3)]
    assert sum(fault.times for fault in s3.proxy.faults) <= 1  # nothing of the record is read


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_on_the_way_what_counts_is_sound(away, s3, seed):
    """Any order of saves, deletions, restarts and faults: no manifest or pointer names what is not whole."""
    dice = random.Random(seed)
    kinds = ("drop", "reset", "truncate", "lie", "spoil", "busy", "delay")
    places = (b"", b".pt", b".json", b"PUT", b"GET", b"record", b"pointers", b"DELETE", b"list-type")
    made, alive = away.mirror(), []
    for _ in range(8):
        alive.append(away.save(tag=dice.choice(("best", "other"))))
        if len(alive) > 2:
            away.store.delete(alive.pop(dice.randrange(2)))
        s3.proxy.faults = [
            Fault(dice.choice(kinds), dice.choice(places), dice.choice((1, 1, 2, 9)))
            for _ in range(dice.randrange(4))
        ]
        with contextlib.suppress(RemoteError):
            made._pass()
        if dice.random() < 0.3:
            made = away.mirror()
        s3.proxy.faults = []
        sound_there(away, s3)
    away.mirror()._pass()
    sound_there(away, s3)
    assert {m.file for m in alive} <= set(away.there(damaged=True))


def sound_there(away, s3):
    """Everything that a manifest names is whole, and every pointer that is whole names such a file."""
    names = {name.removeprefix("runs/run/") for name in s3.names()}
    whole = {}
    for name in names:
        if name.startswith("checkpoints/") and name.endswith(".json"):
            raw = s3.get(f"runs/run/{name}")
            with contextlib.suppress(ValueError):
                digest = unsealed(raw)["digest"]
                data = s3.get(f"runs/run/{name.replace('.json', '.pt')}")
                assert of_bytes(data, digests.algorithm_of(digest)) == digest
                whole[name.replace(".json", ".pt")] = digest
    for name in names:
        if name.startswith("pointers/"):
            with contextlib.suppress(ValueError):
                pointer = unsealed(s3.get(f"runs/run/{name}"))
                assert whole.get(pointer["file"]) == pointer["digest"], name


def test_a_file_that_is_gone_is_no_failure(far, warnings):
    one, two = far.save(), far.save()
    made = far.mirror()
    pending = made._missing()
    far.store.delete(one)
    made._missing = lambda: [m for m in pending if not made._there.holds(m) and far.store.path(m).exists()]
    made.start()
    made.close()
    assert far.there() == [two.file]
    assert warnings() == []


def test_the_queue_is_bounded_and_everything_arrives(far, warnings):
    for _ in range(7):
        far.save()
    made = far.mirror(queue=3)
    assert [m.epoch for m in made.pending()] == [7, 6, 5]
    made.start()
    made.close()
    assert len(far.there()) == 7
    assert [line for line in warnings() if "wait for the mirror" in line] == [
        "7 checkpoints wait for the mirror: the newest 3 go first, the others after them."
    ]


def test_what_fails_makes_way_for_the_others(away, s3):
    away.save()
    away.save()
    s3.proxy.faults = [Fault("drop", b"best_2.pt", 10**6)]
    made = away.fail()
    assert away.there() == []
    with pytest.raises(RemoteError):
        made._pass()
    assert away.there() == ["milestone/best_1.pt"]


def test_a_ctrl_c_ends_the_wait_with_a_list_of_what_is_not_copied(away, s3, warnings, monkeypatch):
    monkeypatch.setattr(background, "QUIET_WAIT_S", 0.1)
    away.save()
    s3.proxy.faults = [Fault("hang", times=10**6)]
    made = away.mirror(wait_s=50, timeout_s=50)
    made.start()
    waiting = made._done.wait

    def interrupted(timeout):
        if timeout > 1:
            signal.raise_signal(signal.SIGINT)
        return waiting(timeout)

    made._done.wait = interrupted
    made.close()
    assert warnings()[-1].startswith("The mirror is not complete: milestone/best_1.pt not uploaded yet.")


def test_what_is_not_copied_in_time_is_a_warning_with_what_to_do(away, s3, warnings):
    for _ in range(5):
        away.save()
    s3.proxy.faults = [Fault("hang", times=10**6)]
    made = away.mirror(wait_s=0.1)
    made.start()
    made.close()
    assert warnings() == [
        "The mirror is not complete: milestone/best_5.pt, milestone/best_4.pt, milestone/best_3.pt and 2 "
        f"more not uploaded yet. To continue: peakpoint push {away.root.parent} {away.url}"
    ]


def test_a_damaged_file_is_not_copied_and_holds_nothing_up(far, warnings):
    bad, good = far.save(), far.save()
    damage(far.store.path(bad))
    far.copy()
    assert far.there() == [good.file]
    assert [line for line in warnings() if "damaged here" in line] == [
        f"mirror: {bad.file} is damaged here, so it is not uploaded: peakpoint repair RUN sets it aside."
    ]


def test_the_pauses_between_tries_grow(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    made = World(tmp_path / "run", f"file://{tmp_path}/file/x").mirror()  # no folder can be made there
    pauses = []

    def wait(pause):
        pauses.append(pause)
        if len(pauses) == 4:
            made._over.set()

    monkeypatch.setattr(made._closing, "wait", wait)
    monkeypatch.setattr(random, "uniform", lambda low, high: high)
    made._work()
    assert pauses == pytest.approx([0.05, 0.1, 0.2, 0.4])


def test_an_outage_is_one_warning_and_its_end_one_line(away, s3, caplog):
    caplog.set_level(logging.INFO, "peakpoint")
    s3.proxy.faults = [Fault("drop", times=12)]
    away.save()
    away.copy()
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "Training continues" in line]) == 1
    assert lines[-1] == f"mirror: {away.url}/run works again; everything is uploaded"
    assert listing.manifests(away.root)[0].file in away.there()
