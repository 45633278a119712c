"""metrics.jsonl: a row for each event, and what becomes of rows that a resumed run writes again."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from peakpoint.base.bounded import json_value, lines
from peakpoint.base.files import write_atomic
from peakpoint.base.text import readable
from peakpoint.checkpointing.events import EvalEnd, Saved, Skipped
from peakpoint.trainer.listeners.events import Logged, Published, Tested
from peakpoint.trainer.listeners.retrying_file import RetryingFile
from peakpoint.trainer.reports.run_record import METRICS

KINDS = {Logged: "train", EvalEnd: "eval", Tested: "test", Saved: "save", Skipped: "skipped save"}
"""The events that have a row, and its `kind`; the names of its other values are those of the event."""
OPTIONAL = ("accuracy", "grad_norm", "digests", "layers")
"""Values that a row has where they are known."""


def row(event: Published) -> dict[str, Any] | None:
    """Return an event as a row of metrics.jsonl, or None when it has none."""
    if (kind := KINDS.get(type(event))) is None:
        return None
    facts = {field.name: getattr(event, field.name) for field in fields(event)}
    if isinstance(event, EvalEnd) and (overall := facts.pop("overall")) is not None:
        facts["sparsity_of_all"] = overall
    return {
        "kind": kind,
        **{name: value for name, value in facts.items() if value is not None or name not in OPTIONAL},
    }


class JsonLines:
    """Appends a row for each event to metrics.jsonl, whole in the file before the next event.

    Rows that cannot be written wait; `missing` counts them. The row of an evaluation has the `seconds` of the
    run at it, where `clock` returns them.
    """

    def __init__(
        self, run: Path, step: int, evaluated: set[int], clock: Callable[[], float] | None = None
    ) -> None:
        path = run / METRICS
        if path.exists():
            _set_aside(path, step, evaluated)
        self._file, self._clock = RetryingFile(path), clock

    def __call__(self, event: Published) -> None:
        """Write an event."""
        if (values := row(event)) is not None:
            if self._clock and isinstance(event, EvalEnd):
                values["seconds"] = self._clock()
            self._file.write(f"{json.dumps(readable(values))}\n".encode())

    @property
    def missing(self) -> int:
        """Return the number of rows that the file lacks."""
        return self._file.missing

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _set_aside(path: Path, step: int, evaluated: set[int]) -> None:
    """Move the rows that will be written again to metrics.superseded.jsonl.

    Those are: training losses and skipped saves after `step`, evaluations at steps not in `evaluated`, every
    reading of the test set, and the torn last line of a killed run.
    """
    kept: list[str] = []
    superseded: list[str] = []
    for line in lines(path):
        try:
            values = json_value(line)
            kind = values["kind"]
            again = (
                kind == "test"
                or (kind == "eval" and values["step"] not in evaluated)
                or (kind in ("train", "skipped save") and values["step"] > step)
            )
        except (ValueError, KeyError, TypeError):
            again = True
        (superseded if again else kept).append(line + "\n")
    if superseded:
        aside = RetryingFile(path.with_name("metrics.superseded.jsonl"))
        aside.write("".join(superseded).encode())
        aside.close()
        write_atomic(path, "".join(kept))


def written(run: Path, steps: range) -> Iterator[Logged | EvalEnd]:
    """Yield the losses and evaluations of these steps in metrics.jsonl, a text for what is not finite."""
    kinds: dict[str, type[Logged | EvalEnd]] = {"train": Logged, "eval": EvalEnd}
    for line in lines(run / METRICS):
        try:
            values = json_value(line)
            if values["step"] not in steps or (kind := kinds.get(values["kind"])) is None:
                continue
            event = kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})
        except (ValueError, KeyError, TypeError):
            continue
        yield event
