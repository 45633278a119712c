"""How events reach the listeners; checkpointing/events.py lists the events and their order.

    publish(EvalEnd, EpochEnd)      events of one moment, in order
      -> each listener              console, metrics.jsonl, TensorBoard
      -> the checkpoint manager     which asks its policies and may answer Stop

Two more are for listeners only: `Logged`, the training loss every `log_every` steps, and `Tested`, the
metrics of the test set. metrics.jsonl is written whatever is chosen: reports and releases read it. The other
listeners are chosen with `logger=[console,tensorboard]`, and their settings derive from `Logger`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import Event, Fact
from peakpoint.checkpointing.policy import Stop

if TYPE_CHECKING:  # torch comes with it
    from peakpoint.checkpointing.manager import Manager


@dataclass(frozen=True, slots=True)
class Logged:
    """The mean training loss and accuracy since the last one, and the rate in images per second.

    `skipped` is how many steps were left out since the run began, as they were not finite. `grad_norm` is
    the global norm of the gradients at this step, before clipping; None when the step was skipped.
    """

    epoch: int
    step: int
    loss: float
    lr: float
    images_per_second: float
    skipped: int = 0
    accuracy: float | None = None
    grad_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Tested:
    """The test set of `samples` images was read with the weights of a checkpoint, `selected` or `final`.

    `bytes` is the size of a file of these weights alone, with the zeros packed away.
    """

    which: str
    epoch: int
    step: int
    metrics: Mapping[str, float]
    sparsity: float
    samples: int
    bytes: int
    file: str | None


Published = Event | Fact | Logged | Tested


class Listener(Protocol):
    """Receives everything that is published."""

    def __call__(self, event: Published) -> None:
        """Handle an event."""
        ...

    def close(self) -> None:
        """Finish: the run is over."""
        ...


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that begins: its run directory, and the optimizer steps before it and at its end.

    `run` is the id of the run, the same in all its attempts; `config` the resolved configuration.
    """

    directory: Path
    console: Console
    step: int
    total_steps: int
    run: str
    config: Mapping[str, Any]


class Logger(ABC):
    """The settings of a listener: derive from it, register it as a `logger`, and write `build`."""

    def check(self, directory: Path) -> None:  # noqa: B027
        """Raise UserError where it cannot work in a run directory; called before anything is written."""

    @abstractmethod
    def build(self, attempt: Attempt) -> Listener:
        """Return the listener of an attempt."""


class Apart:
    """Passes events to a logger until its first error, which is one line and ends nothing else.

    Within `without(line)` an error becomes a warning that begins with the line.
    """

    def __init__(
        self, name: str, listener: Listener, without: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        self._name, self._listener, self._without = name, listener, without
        self._works = True

    def __call__(self, event: Published) -> None:
        """Pass an event on."""
        if self._works:
            self._works = False
            with self._without(f"logger.{self._name} failed and is left out from here on"):
                self._listener(event)
                self._works = True

    def close(self) -> None:
        """Close the logger; where it has failed, a second failure has no line."""
        line = f"{type(self._listener).__name__} was not closed"
        with self._without(line) if self._works else suppress(Exception):
            self._listener.close()


class Publisher:
    """Passes events to every listener, then to the manager, whose facts come back to the listeners."""

    def __init__(self, listeners: Sequence[Callable[[Published], None]], manager: "Manager") -> None:
        self._listeners = tuple(listeners)
        self._handle = manager.handle
        manager.subscribe(self.notify)

    def __call__(self, *events: Event) -> Stop | None:
        """Publish the events of one moment; returns a Stop when a policy asks for one."""
        for event in events:
            for listener in self._listeners:
                listener(event)
        return self._handle(*events)

    def notify(self, fact: Published) -> None:
        """Publish what concerns the listeners alone."""
        for listener in self._listeners:
            listener(fact)
