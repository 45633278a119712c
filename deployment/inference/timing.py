"""How long networks take for the same images, by turns, so that a busy machine slows all of them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[Tensor], Tensor]
WARM = 5
"""Calls before the first that counts: the first ones choose kernels and fill caches."""


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of a sample."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least two values."""
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Latency:
    """Seconds a call, and what they are of those of the first network in the same round."""

    seconds: Spread
    ratio: Spread


def waiting_for(device: torch.device) -> Callable[[], None]:
    """What returns once a device has done all that it was given."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def measure(
    calls: Mapping[str, tuple[Call, Tensor]],
    *,
    rounds: int,
    synchronize: Callable[[], None],
    warm: int = WARM,
    seed: int = 0,
) -> dict[str, Latency]:
    """Time each call on its images once a round, in an order drawn anew for every round.

    `synchronize` waits for the device. Ratios are taken within a round, so that what slows a whole round
    cancels out.
    """
    draw = random.Random(seed)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for call, images in calls.values():
            for _ in range(warm):
                call(images)
        synchronize()
        for _ in range(rounds):
            for name in draw.sample(list(calls), len(calls)):
                call, images = calls[name]
                start = time.perf_counter()
                call(images)
                synchronize()
                taken[name].append(time.perf_counter() - start)
    first = next(iter(taken.values()))
    return {
        name: Latency(Spread.of(seconds), Spread.of([s / f for s, f in zip(seconds, first, strict=True)]))
        for name, seconds in taken.items()
    }
