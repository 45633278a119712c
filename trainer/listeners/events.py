"""How events reach whoever listens. What they are, and in which order they come: checkpointing/events.py.

    publish(EvalEnd, EpochEnd)      events of one moment, in order
      -> each listener              console, metrics.jsonl, TensorBoard
      -> the checkpoint manager     which asks its policies and may answer Stop

Two more come from the loop, for listeners only: `Logged`, a training loss every so many steps, and `Tested`,
when the test set has been read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from peakpoint.checkpointing.events import Event, Fact
from peakpoint.checkpointing.manager import Manager
from peakpoint.checkpointing.policy import Stop


@dataclass(frozen=True, slots=True)
class Logged:
    """The mean training loss since the last one, and the rate in images per second.

    `skipped` is how many steps were left out since the run began, as they were not finite.
    """

    epoch: int
    step: int
    loss: float
    lr: float
    images_per_second: float
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Tested:
    """The test set was read with the weights of a checkpoint; `which` is `selected` or `final`."""

    which: str
    epoch: int
    step: int
    metrics: Mapping[str, float]
    sparsity: float
    file: str | None


Published = Event | Fact | Logged | Tested


class Listener(Protocol):
    """Hears of everything that is published."""

    def __call__(self, event: Published) -> None:
        """Something happened."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class Publisher:
    """Tells every listener, then the checkpoint manager, whose facts come back to the listeners."""

    def __init__(self, listeners: Sequence[Listener], manager: Manager) -> None:
        self._listeners = tuple(listeners)
        self._handle = manager.handle
        manager.subscribe(self.tell)

    def __call__(self, *events: Event) -> Stop | None:
        """Publish the events of one moment; returns a Stop when a policy asks for one."""
        for event in events:
            for listener in self._listeners:
                listener(event)
        return self._handle(*events)

    def tell(self, fact: Published) -> None:
        """Publish something that the manager need not hear of."""
        for listener in self._listeners:
            listener(fact)
