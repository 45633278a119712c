"""Latency of networks on the same images, measured by turns, so that a busy machine slows all alike."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
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


def measure(
    calls: Sequence[tuple[Call, Tensor]],
    *,
    rounds: int,
    device: torch.device,
    warm: int = WARM,
) -> list[Latency]:
    """Time each call on its images once a round, in an order drawn anew for every round.

    A call ends when its device has finished. Ratios are taken within a round, which cancels a slowdown of the
    whole round.
    """

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    draw = random.Random(0)
    seconds: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode():
        for call, images in calls:
            for _ in range(warm):
                call(images)
        synchronize()
        for _ in range(rounds):
            for number in draw.sample(range(len(calls)), len(calls)):
                call, images = calls[number]
                start = time.perf_counter()
                call(images)
                synchronize()
                seconds[number].append(time.perf_counter() - start)
    return [
        Latency(Spread.of(own), Spread.of([s / first for s, first in zip(own, seconds[0], strict=True)]))
        for own in seconds
    ]
