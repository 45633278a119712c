"""Who listens to a run: the console, metrics.jsonl, TensorBoard."""

import importlib
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from peakpoint.base.bounded import json_value, lines
from peakpoint.base.errors import UserError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import Deleted, EvalEnd, RunEnd, Saved, Skipped, StepEnd
from peakpoint.checkpointing.storage.store import write_atomic
from peakpoint.trainer.listeners.events import Logged, Published, Tested
from peakpoint.trainer.listeners.jsonl import PatientFile
from peakpoint.trainer.reports.run_record import METRICS, finite, sentence

log = logging.getLogger("peakpoint")


class ConsoleHandler(logging.Handler):
    """Prints log lines through the console that also draws the progress bar, so that they do not mix."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print the bare message."""
        self.console.say(record.getMessage())


class ConsoleListener:
    """One line an evaluation; between them a bar on a terminal, a line a logged loss elsewhere."""

    def __init__(self, console: Console, *, total_steps: int, start_step: int) -> None:
        self._total = total_steps
        self._drawn = 0.0
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("steps", total=total_steps, completed=start_step, rate="")
            self._bar.start()

    def __call__(self, event: Published) -> None:
        """Show an event."""
        if isinstance(event, StepEnd):
            if self._bar and (now := time.monotonic()) - self._drawn > 0.1:
                self._drawn = now
                self._bar.update(self._task, completed=event.step, description=f"epoch {event.epoch}")
        elif isinstance(event, Logged):
            self._log(event)
        else:
            self._say(event)

    def _log(self, event: Logged) -> None:
        rate, now = f"{event.images_per_second:.0f} images/s", time.monotonic()
        if self._bar:
            self._bar.update(self._task, rate=rate)
        elif now - self._drawn > 1:  # metrics.jsonl has every one
            self._drawn = now
            log.info(
                f"epoch {event.epoch} step {event.step}/{self._total} loss {event.loss:.4f} "
                f"lr {event.lr:.2e} {rate}{f', {event.skipped} skipped' if event.skipped else ''}"
            )

    def _say(self, event: Published) -> None:
        if isinstance(event, EvalEnd):
            m = event.metrics
            log.info(
                f"epoch {event.epoch}: accuracy {m['accuracy']:.2%}, top-5 {m['top5_accuracy']:.2%}, "
                f"F1 {m['f1_score']:.4f}, loss {m['loss']:.4f}, sparsity {event.sparsity:.2%}{_of_all(event)}"
            )
        elif isinstance(event, Saved):
            log.info(
                f"saved {event.file} ({', '.join(event.tags)}): {event.bytes / 1e6:.1f} MB in "
                f"{event.total_s:.2f} s, training waited {event.stall_s:.3f} s"
            )
        elif isinstance(event, Skipped):
            log.info(
                f"epoch {event.epoch} step {event.step} is not saved ({', '.join(event.tags)}): "
                "the save before it is still being written"
            )
        elif isinstance(event, Deleted):
            log.debug(f"deleted {event.file}: nothing keeps it any more")
        elif isinstance(event, Tested):
            log.info(
                f"test, {event.which} weights (epoch {event.epoch}): accuracy "
                f"{event.metrics['accuracy']:.2%}, loss {event.metrics['loss']:.4f}"
            )
        elif isinstance(event, RunEnd):
            log.info(f"training ended at epoch {event.epoch}, step {event.step}: {event.reason}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()


def _of_all(event: EvalEnd) -> str:
    """A pruned network's zeros among all its parameters: it has others than prunable weights."""
    return f" ({event.overall:.2%} of all parameters)" if event.overall and event.sparsity > 0 else ""


def row(event: Published) -> dict[str, Any] | None:
    """An event as a row of metrics.jsonl, or None when it has none."""
    match event:
        case Logged(epoch, step, loss, lr, rate, skipped):
            values = {"loss": loss, "lr": lr, "images_per_second": rate, "skipped": skipped}
            return {"kind": "train", "epoch": epoch, "step": step, **values}
        case EvalEnd(epoch, step, metrics, sparsity, version, overall):
            facts: dict[str, Any] = {"metrics": dict(metrics), "sparsity": sparsity, "mask_version": version}
            facts |= {} if overall is None else {"sparsity_of_all": overall}
            return {"kind": "eval", "epoch": epoch, "step": step, **facts}
        case Tested(which, epoch, step, metrics, sparsity, file):
            facts = {"metrics": dict(metrics), "sparsity": sparsity, "file": file}
            return {"kind": "test", "which": which, "epoch": epoch, "step": step, **facts}
        case Saved(file, tags, size, stall, total):
            facts = {"tags": list(tags), "bytes": size, "stall_s": stall, "total_s": total}
            return {"kind": "save", "file": file, **facts}
        case Skipped(epoch, step, tags):
            return {"kind": "skipped save", "epoch": epoch, "step": step, "tags": list(tags)}
    return None


class JsonLines:
    """Appends a row an event to metrics.jsonl; each line is whole in the file before the next event.

    Without room the rows wait, and `missing` says how many.
    """

    def __init__(self, run: Path, step: int, evaluated: set[int]) -> None:
        path = run / METRICS
        if path.exists():
            _set_aside(path, step, evaluated)
        self._file = PatientFile(path)

    def __call__(self, event: Published) -> None:
        """Write an event."""
        values = None if isinstance(event, StepEnd) else row(event)
        if values is not None:
            self._file.write(f"{json.dumps(finite(values))}\n".encode())

    @property
    def missing(self) -> int:
        """How many rows found no room."""
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
        aside = PatientFile(path.with_name("metrics.superseded.jsonl"))
        aside.write("".join(superseded).encode())
        aside.close()
        write_atomic(path, "".join(kept))


def check_tensorboard(run: Path) -> None:
    """Raise UserError where TensorBoard's records cannot be written, while nothing has begun."""
    folder = run / "tensorboard"
    try:
        importlib.import_module("tensorboard.summary.writer.record_writer")
    except Exception as error:  # a package that does not go with NumPy or protobuf raises almost anything
        reason = f"cannot be loaded ({sentence(error)})"
    else:
        if folder.is_dir() or not os.path.lexists(folder):
            return
        reason = f"cannot write, since {folder} is no folder"
    raise UserError(f"TensorBoard {reason}: mend that, or do without by tensorboard=false.")


class TensorBoard:
    """Scalars for TensorBoard, in the run directory; rows after a resume replace what they repeat.

    TensorBoard's records in a file that waits for room: the writer that comes with it ends for good at the
    first refusal.
    """

    def __init__(self, run: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"  # read by name
        self._file = PatientFile(folder / name)
        self._records: Any = RecordWriter(self._file)
        self._event, self._summary = Event, Summary
        self._write(file_version="brain.Event:2")
        if step:
            self._write(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def __call__(self, event: Published) -> None:
        """Write an event's numbers."""
        if isinstance(event, StepEnd):
            return
        if isinstance(event, Logged):
            rate = event.images_per_second
            self._add("train", event.step, {"loss": event.loss, "lr": event.lr, "images_per_second": rate})
        elif isinstance(event, EvalEnd):
            self._add("val", event.step, {**event.metrics, "sparsity": event.sparsity})
        elif isinstance(event, Tested):
            self._add(f"test_{event.which}", event.step, event.metrics)

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Scalars of one moment as one record."""
        scalars = [self._summary.Value(tag=f"{group}/{n}", simple_value=v) for n, v in values.items()]
        self._write(step=step, summary=self._summary(value=scalars))

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        """Write what is left."""
        self._file.close()
