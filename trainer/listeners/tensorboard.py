"""TensorBoard: scalars of a run, as records that TensorBoard reads."""

import importlib
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peakpoint.base.errors import UserError
from peakpoint.base.registry import register
from peakpoint.checkpointing.events import EvalEnd, StepEnd
from peakpoint.trainer.listeners.events import Attempt, Logged, Logger, Published, Tested
from peakpoint.trainer.listeners.retrying_file import RetryingFile
from peakpoint.trainer.reports.run_record import sentence


@register("logger", "tensorboard")
@dataclass(kw_only=True)
class TensorBoardLogger(Logger):
    """Scalars in the folder `tensorboard` of the run."""

    def check(self, directory: Path) -> None:
        """Raise UserError where TensorBoard's records cannot be written."""
        folder = directory / "tensorboard"
        try:
            importlib.import_module("tensorboard.summary.writer.record_writer")
        except Exception as error:  # a package that does not go with NumPy or protobuf raises almost anything
            reason = f"cannot be loaded ({sentence(error)})"
        else:
            if folder.is_dir() or not os.path.lexists(folder):
                return
            reason = f"cannot write, since {folder} is no folder"
        raise UserError(f"TensorBoard {reason}: correct that, or add logger=[console].")

    def build(self, attempt: Attempt) -> "TensorBoard":
        """Return the listener of an attempt."""
        return TensorBoard(attempt.directory, attempt.step)


class TensorBoard:
    """Writes scalars for TensorBoard; those after a resume replace the steps that they repeat.

    The records go through a RetryingFile: TensorBoard's own writer stops for good at the first failed write.
    """

    def __init__(self, run: Path, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"  # read by name
        self._file = RetryingFile(folder / name)
        self._records: Any = RecordWriter(self._file)
        self._event, self._summary = Event, Summary
        self._write(file_version="brain.Event:2")
        # Also at step 0: an attempt that was killed before its first checkpoint has left records behind.
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
            if event.layers:
                self._add("sparsity", event.step, event.layers)
        elif isinstance(event, Tested):
            self._add(f"test_{event.which}", event.step, event.metrics)

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of one moment as one record."""
        scalars = [self._summary.Value(tag=f"{group}/{n}", simple_value=v) for n, v in values.items()]
        self._write(step=step, summary=self._summary(value=scalars))

    def _write(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        """Write what is left."""
        self._file.close()
