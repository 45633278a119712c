"""What TensorBoard and tracking tools get of a run: its numbers by step, its settings, its state."""

import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.files import write_atomic
from peakpoint.base.lock import present
from peakpoint.base.text import json_text
from peakpoint.checkpointing.events import EvalEnd, Interrupted, RunEnd, StepEnd
from peakpoint.checkpointing.remote import urls
from peakpoint.trainer.listeners.events import Attempt, Logged, Published, Tested
from peakpoint.trainer.listeners.jsonl import written
from peakpoint.trainer.reports.run_record import sentence

WRITTEN_S = 20.0
"""Seconds in which a tool writes what it was sent; wandb does each 15."""


def check_package(name: str, *modules: str) -> None:
    """Raise UserError where the modules of the extra `name` cannot be imported."""
    try:
        for module in modules:
            importlib.import_module(module)
    except Exception as error:  # a package that does not go with another raises almost anything
        reason = f"cannot be loaded ({sentence(error)})"
        if isinstance(error, ModuleNotFoundError):
            reason = f"needs {error.name}"
        raise UserError(f"logger={name} {reason}: pip install 'peakpoint[{name}]'.") from None


def numbers(event: Logged | EvalEnd | Tested) -> tuple[str, dict[str, float]]:
    """Return the group and the numbers of an event."""
    values: Mapping[str, float | None]
    if isinstance(event, Logged):
        names = ("loss", "lr", "accuracy", "grad_norm", "images_per_second")
        group, values = "train", {name: getattr(event, name) for name in names}
    else:
        group = "val" if isinstance(event, EvalEnd) else f"test_{event.which}"
        values = {**event.metrics, "sparsity": event.sparsity, "epoch": event.epoch}
    return group, {f"{group}/{n}": float(v) for n, v in values.items() if v is not None}


def without_secrets(value: Any) -> Any:
    """Return a configuration with `***` for passwords of URLs and secrets of the environment."""
    if isinstance(value, Mapping):
        return {str(key): without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return urls.shown(value) if isinstance(value, str) else value


class Numbers(ABC):
    """Takes the numbers of a run by group and step; knows its `state` and its last `step`.

    The test set is read when the run has ended, and its numbers have that step, whichever checkpoint was
    tested: the steps of a curve only grow, and a resumed run that reads it again can replace them.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.state = "failed"  # unless the end of the training comes

    def __call__(self, event: Published) -> None:
        """Pass an event's numbers on."""
        if isinstance(event, StepEnd):
            self.step = event.step
        elif isinstance(event, RunEnd | Interrupted):
            self.step = event.step
            self.state = "finished" if isinstance(event, RunEnd) else "interrupted"
        elif isinstance(event, Logged | EvalEnd | Tested):
            group, values = numbers(event)
            self.take(group, self.step if isinstance(event, Tested) else event.step, values)

    @abstractmethod
    def take(self, group: str, step: int, values: dict[str, float]) -> None:
        """Take the numbers of a group at a step."""


class Tracker(Numbers):
    """Sends a run's numbers to a tool, where the run stays one run however often it is resumed.

    The tool is opened at the first number: what fails there is this listener's failure, not the run's.
    A resumed run sends what metrics.jsonl has and the tool lacks, as a kill may come before the tool has
    written it, but no step that the tool has, as none can replace one. `NAME.json` in the run directory
    has the run's `id` in the tool and, by group, the last step `sent` that the tool has written for certain.
    """

    def __init__(self, name: str, attempt: Attempt) -> None:
        super().__init__(attempt.step)
        self.attempt = attempt
        self._name = f"{name}.json"
        self._id: str | None = None
        self._sent: dict[str, int] = {}
        self._settled: tuple[float, dict[str, int]] = (time.monotonic(), {})

    def take(self, group: str, step: int, values: dict[str, float]) -> None:
        """Send numbers of a step that the tool does not have."""
        if self._id is None:
            self._begin()
        if step <= self._sent.get(group, -1):
            return
        since, settled = self._settled
        # A tool may hold the numbers of a step back until those of the next.
        if step > max(self._sent.values(), default=-1) and time.monotonic() - since > WRITTEN_S:
            self._note(settled)
            self._settled = (time.monotonic(), dict(self._sent))
        self.send(step, values)
        self._sent[group] = step

    def _begin(self) -> None:
        """Open the tool, note the run's id there, and send what it lacks of the attempts before."""
        known, sent = self._noted()
        self._id, self._sent = self.open(known, sent, without_secrets(self.attempt.config))
        self._settled = (time.monotonic(), dict(self._sent))
        self._note(self._sent)
        before = range(1, self.attempt.step + 1)
        for event in written(present(self.attempt.directory, or_named=True), before):
            self(event)

    def _noted(self) -> tuple[str | None, dict[str, int]]:
        """Return the id and the steps that an earlier attempt noted; none where they cannot be read."""
        try:
            found = bounded.read_json(present(self.attempt.directory, or_named=True) / self._name)
        except CheckpointError:
            return None, {}
        known, sent = found.get("id"), found.get("sent")
        if not (isinstance(known, str) and known.isalnum() and isinstance(sent, dict)):
            return None, {}
        return known, {group: step for group, step in sent.items() if type(step) is int}

    def _note(self, sent: Mapping[str, int]) -> None:
        found = json_text({"id": self._id, "sent": sent})
        write_atomic(present(self.attempt.directory, or_named=True) / self._name, found)

    def close(self) -> None:
        """End the run in the tool with its state."""
        if self._id is not None:
            self.end(self.state)
            self._note(self._sent)

    @abstractmethod
    def open(
        self, known: str | None, sent: dict[str, int], config: dict[str, Any]
    ) -> tuple[str, dict[str, int]]:
        """Begin, or go on with the run of an id, which was sent the steps up to `sent` of each group.

        Returns the id of the run that is written, and the last steps that it has.
        """

    @abstractmethod
    def send(self, step: int, values: dict[str, float]) -> None:
        """Send numbers of a step."""

    @abstractmethod
    def end(self, state: str) -> None:
        """End with `finished`, `interrupted` or `failed`."""
