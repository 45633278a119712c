"""TensorBoard: scalars of a run and its row of HPARAMS, as records that TensorBoard reads."""

import contextlib
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
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.trainer.listeners import hparams
from peakpoint.trainer.listeners.events import Attempt, Logger, Published
from peakpoint.trainer.listeners.jsonl import written
from peakpoint.trainer.listeners.retrying_file import RetryingFile
from peakpoint.trainer.listeners.tracking import Numbers
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
        return TensorBoard(attempt.directory, attempt.step, attempt.config)


class Records:
    """A file of TensorBoard's records.

    They go through a RetryingFile: TensorBoard's own writer stops for good at the first failed write.
    """

    def __init__(self, path: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._file = RetryingFile(path)
        self._writer: Any = RecordWriter(self._file)
        self._event = Event
        self.write(file_version="brain.Event:2")

    def write(self, **fields: Any) -> None:
        """Write an event with these fields."""
        self._writer.write(self._event(wall_time=time.time(), **fields).SerializeToString())

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


class TensorBoard(Numbers):
    """Writes the scalars of a run, and its row of HPARAMS, for TensorBoard.

    An attempt replaces the steps that it repeats. TensorBoard can only leave out all that it has read from a
    step on. Of the checkpoint's own step some may be repeated, such as an evaluation that a signal had cut
    short: it is left out, and what metrics.jsonl keeps of it is written once more.
    """

    def __init__(self, run: Path, step: int, config: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

        super().__init__(step)
        self._run, self._summary = run, Summary
        folder = run / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"  # read by name
        self._scalars = Records(folder / name)
        # Also at the beginning: an attempt that was killed before its first checkpoint has left records.
        self._scalars.write(step=max(step, 1), session_log=SessionLog(status=SessionLog.START))
        if step:
            for event in written(run, range(step, step + 1)):
                self(event)
        with contextlib.suppress(OSError):  # TensorBoard shows the first settings that it reads of a folder
            (folder / hparams.FILE).unlink()
        self._row = Records(folder / hparams.FILE)
        self._row.write(summary=hparams.started(config))

    def __call__(self, event: Published) -> None:
        """Write an event's numbers."""
        super().__call__(event)
        if isinstance(event, EvalEnd) and event.layers:
            self.take("sparsity", event.step, {f"sparsity/{n}": float(v) for n, v in event.layers.items()})

    def take(self, group: str, step: int, values: dict[str, float]) -> None:  # noqa: ARG002
        """Write the numbers of one moment as one record."""
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._scalars.write(step=step, summary=self._summary(value=scalars))

    def close(self) -> None:
        """Write what the run came to, and what is left."""
        try:
            found = hparams.results(self._run)
            self.take("end", self.step, {f"end/{name}": value for name, value in found.items()})
            if self.state in hparams.STATUS:
                self._row.write(summary=hparams.ended(self.state))
        finally:
            self._scalars.close()
            self._row.close()
