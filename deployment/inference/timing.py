"""Latency of networks on the same images, measured by turns, so that a busy machine slows all alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[Tensor], Tensor]
WARM = 5
"""Calls before the measured ones, which choose kernels and fill caches."""


@dataclass(frozen=True)
class Spread:
    """The median and the quartiles of a sample."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of at least two values."""
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Latency:
    """Seconds a call, and their ratio to those of the first network in the same round."""

    seconds: Spread
    ratio: Spread


def waiting_for(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until a device has finished its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def measure(
    calls: Mapping[str, tuple[Call, Tensor]],
    *,
    rounds: int,
    synchronize: Callable[[], None],
    warm: int = WARM,
) -> dict[str, Latency]:
    """Time each call on its images once a round, in an order drawn anew for every round.

    `synchronize` waits for the device. Ratios are taken within a round, which cancels a slowdown of the whole
    round.
    """
    draw = random.Random(0)
    seconds_of: dict[str, list[float]] = {name: [] for name in calls}
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
                seconds_of[name].append(time.perf_counter() - start)
    first = next(iter(seconds_of.values()))
    return {
        name: Latency(Spread.of(seconds), Spread.of([s / f for s, f in zip(seconds, first, strict=True)]))
        for name, seconds in seconds_of.items()
    }
