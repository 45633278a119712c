"""Timing by turns: order, warm-up, and a machine that is slow for a while, on a clock that the test moves."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from peakpoint.deployment.inference import timing
from peakpoint.deployment.inference.timing import Spread, measure


def test_quartiles():
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(2.0, 3.0, 4.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.25, 1.5, 1.75)


@pytest.fixture
def clock(monkeypatch):
    """Return a clock for the code under test, in seconds since the start."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def calls(clock, called, costs):
    """Return a call for each cost; the machine is three times slower in the second half of the rounds."""

    def make(name, cost):
        def call(images):
            called.append((name, len(images)))
            slow = 3 if len(called) > 2 * timing.WARM + 20 else 1
            clock[0] += cost * slow

        return call, torch.zeros(4)

    return [make(name, cost) for name, cost in costs.items()]


def test_what_slows_a_round_slows_all_in_it_and_cancels_out(clock):
    called = []
    a, b = measure(calls(clock, called, {"a": 1.0, "b": 2.0}), rounds=20, device=torch.device("cpu"))
    assert a.ratio == Spread(1, 1, 1)
    assert b.ratio == Spread(2, 2, 2)
    assert (b.seconds.low, b.seconds.high) == (2, 6)
    names = [name for name, _ in called[2 * timing.WARM :]]
    rounds = [tuple(names[i : i + 2]) for i in range(0, len(names), 2)]
    assert len(rounds) == 20
    assert all(sorted(each) == ["a", "b"] for each in rounds)
    orders = Counter(rounds)
    assert min(orders["a", "b"], orders["b", "a"]) >= 3  # not always the same one first
    assert len({x == y for x, y in pairwise(rounds)}) == 2  # nor by turns


def test_the_device_is_waited_for(clock, monkeypatch):
    """A device that works on after the call has returned, as CUDA does."""
    waits = []

    def wait(device):
        waits.append(clock[0])
        clock[0] += 5.0

    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    found = measure(calls(clock, [], {"a": 1.0, "b": 2.0}), rounds=3, device=torch.device("cuda"))
    assert found[0].seconds.low >= 6
    assert len(waits) == 1 + 6
