"""The benchmarks of the loop run end to end, and time what they say."""

import json
import logging
import sys
from argparse import Namespace
from importlib.util import find_spec

import pytest

from benchmarks import after_saves, loop_overhead
from benchmarks._loop_arms import BARE, LIGHTNING, OURS

TINY = {"model": "lenet5", "precision": "bf16", "batch_size": 4, "threads": 1, "saves": 3, "every": 2}


@pytest.fixture(autouse=True)
def loud_again():
    """A benchmark silences the log of its process, which other tests read."""
    log = logging.getLogger("peakpoint")
    level, propagate, handlers = log.level, log.propagate, log.handlers[:]
    yield
    log.setLevel(level)
    log.propagate, log.handlers[:] = propagate, handlers


@pytest.mark.parametrize("arm", [BARE, OURS, LIGHTNING])
def test_an_arm_saves_as_often_as_asked_and_no_more(tmp_path, monkeypatch, arm):
    if arm == LIGHTNING and not find_spec("lightning"):
        pytest.skip("lightning is not installed")
    from peakpoint.checkpointing.storage.store import Store

    saved = []
    real = Store.save

    def save(self, roles, *rest, **more):
        saved.append(roles[0].global_step)
        return real(self, roles, *rest, **more)

    monkeypatch.setattr(Store, "save", save)
    times = after_saves.train(arm, Namespace(**TINY, steps=4), tmp_path)
    assert times["before"] > 0
    assert times["after"] > 0
    if arm == OURS:
        assert saved[:3] == [2, 4, 6]
        assert not [step for step in saved[3:] if step <= 6 + 4]  # then only the end of the run
    if arm == LIGHTNING:
        assert list(tmp_path.glob("*.ckpt"))


def test_the_process_of_an_arm_prints_its_figures_last_and_the_goal_is_printed(monkeypatch, capsys):
    asked = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    monkeypatch.setattr(sys, "argv", ["after_saves", *asked, "--steps=2", f"--arm={BARE}"])
    after_saves.main()
    assert set(json.loads(capsys.readouterr().out.splitlines()[-1])) == {"before", "after"}
    after_saves.report({BARE: [{"before": 1.0, "after": 2.0}], OURS: [{"before": 1.0, "after": 2.06}]}, "")
    assert "to the bare loop's: 1.03 (1.03 to 1.03), at most 1.02: not met" in capsys.readouterr().out


@pytest.mark.slow
def test_a_default_run_is_timed_beside_a_plain_loop():
    options = Namespace(model="lenet5", batch_size=8, steps=4, repeats=1)
    found = after_saves.default_run(options)
    assert set(found) == {OURS, *after_saves.PLAIN}
    assert all(rate > 0 for rates in found.values() for rate in rates)


def test_turns_of_a_short_loop_with_saves(monkeypatch, capsys):
    monkeypatch.setattr(loop_overhead, "find_spec", lambda _: None)
    asked = ["--repeats=1", "--batch-size=4", "--checkpoint-every=50"]
    monkeypatch.setattr(sys, "argv", ["loop_overhead", *asked])
    loop_overhead.main()
    out = capsys.readouterr().out
    assert "peakpoint" in out
    assert "50 steps a turn, n=1" in out
