"""What a run says: a line an evaluation or a save, in train.log and on the console, which draws a bar too."""

import logging
import time
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from peakpoint.base.disk_space import in_words
from peakpoint.base.registry import register
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import Deleted, EvalEnd, RunEnd, Saved, Skipped, StepEnd
from peakpoint.checkpointing.metrics import METRICS, shown
from peakpoint.trainer.listeners.events import Attempt, Logged, Logger, Published, Tested

log = logging.getLogger("peakpoint")


class ConsoleHandler(logging.Handler):
    """Prints log lines through the console that also draws the progress bar, so that they do not mix."""

    def __init__(self, console: Console, level: int = logging.INFO) -> None:
        super().__init__(level)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print the bare message."""
        self.console.say(record.getMessage())


class LogLines:
    """Logs a line for each evaluation, save and test, and one for the loss, at most every second.

    train.log has them all; the console shows losses in a way of its own.
    """

    def __init__(self, total_steps: int) -> None:
        self._total, self._logged = total_steps, 0.0

    def __call__(self, event: Published) -> None:
        """Log an event."""
        if isinstance(event, Logged):
            if (now := time.monotonic()) - self._logged > 1:  # metrics.jsonl has every one
                self._logged = now
                log.debug("%s", _progress(event, self._total))
        elif isinstance(event, EvalEnd):
            values = (f"{m.short} {shown(m.name, event.metrics[m.name])}" for m in METRICS.values())
            log.info(
                f"epoch {event.epoch} step {event.step} validation: {', '.join(values)}, "
                f"sparsity {event.sparsity:.2%}{_of_all(event)}"
            )
        elif isinstance(event, Saved):
            log.info(
                f"saved {event.file} ({', '.join(event.tags)}): {in_words(event.bytes)} in "
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
                f"test, {event.which} weights (epoch {event.epoch}): "
                f"{', '.join(f'{name} {shown(name, event.metrics[name])}' for name in ('accuracy', 'loss'))}"
            )
        elif isinstance(event, RunEnd):
            log.info(f"training ended at epoch {event.epoch}, step {event.step}: {event.reason}")

    def close(self) -> None:
        """Nothing is open."""


@register("logger", "console")
@dataclass(kw_only=True)
class ConsoleLogger(Logger):
    """The lines of train.log and the report on the console; without it, warnings alone."""

    def build(self, attempt: Attempt) -> "ConsoleListener":
        """Return the listener of an attempt."""
        return ConsoleListener(attempt.console, total_steps=attempt.total_steps, start_step=attempt.step)


class ConsoleListener:
    """Draws a progress bar on a terminal; elsewhere it prints the loss, at most every second."""

    def __init__(self, console: Console, *, total_steps: int, start_step: int) -> None:
        self._console, self._total = console, total_steps
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
        now = time.monotonic()
        if isinstance(event, Logged) and self._bar:
            self._bar.update(self._task, rate=f"loss {event.loss:.4f}, {_rate(event)}")
        elif isinstance(event, Logged) and now - self._drawn > 1:
            self._drawn = now
            self._console.say(_progress(event, self._total))
        elif isinstance(event, StepEnd) and self._bar and now - self._drawn > 0.1:
            self._drawn = now
            self._bar.update(self._task, completed=event.step, description=f"epoch {event.epoch}")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.stop()


def _progress(event: Logged, total: int) -> str:
    return (
        f"epoch {event.epoch} step {event.step}/{total} loss {event.loss:.4f} "
        f"lr {event.lr:.2e} {_rate(event)}{f', {event.skipped} skipped' if event.skipped else ''}"
    )


def _rate(event: Logged) -> str:
    return f"{event.images_per_second:.0f} images/s"


def _of_all(event: EvalEnd) -> str:
    """Return the zeros of a pruned network among all parameters, prunable or not, in words."""
    return f" ({event.overall:.2%} of all parameters)" if event.overall and event.sparsity > 0 else ""
