"""The end of a run: it is trained, and what fails from here on is told and does not undo that."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.lock import followed
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage.store import Store
from peakpoint.trainer.config.explain import explain
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.reports import plots, run_record, tables

log = logging.getLogger("peakpoint")


class Ending:
    """Ends a run in `directory`; `notes` say in a line each what it had to end without."""

    def __init__(self, config: Config, directory: Path, console: Console) -> None:
        self.config, self._named, self.console = config, directory, console
        self.notes: list[str] = []

    @property
    def directory(self) -> Path:
        """The run's directory, where it is now."""
        return followed(self._named)

    @contextlib.contextmanager
    def without(self, missing: str) -> Iterator[None]:
        """Whatever fails within is one warning, which begins with `missing`, and a note."""
        try:
            yield
        except Exception as error:
            expected = isinstance(error, UserError | CheckpointError | OSError)
            if not expected:
                run_record.log_failure(error)
            reason = explain(error) if expected else run_record.sentence(error)
            self.note(f"{missing}: {' '.join(reason.split())}")

    def note(self, line: str) -> None:
        """Warn, and keep the line for status.json."""
        log.warning("%s", line)
        self.notes.append(line)

    def finish(self, kept: Store, lost: int, **facts: Any) -> None:
        """Record that the run is finished, then report: a signal that comes meanwhile ends only the report.

        `kept` holds its checkpoints, and `lost` counts the rows that metrics.jsonl lacks.
        """
        known = len(self.notes)
        self._record(facts)
        if lost:
            self.note(f"no report: {self.directory / run_record.METRICS} lacks {lost} rows.")
        else:
            self._report(kept)
        if len(self.notes) > known:
            self._record(facts)

    def _record(self, facts: dict[str, Any]) -> None:
        notes = {"notes": self.notes} if self.notes else {}
        run_record.end(self.directory, "finished", **facts, **notes)

    def _report(self, kept: Store) -> None:
        """Peak against final, what is kept, curves."""
        monitor, targets = self.config.checkpoint.monitor, [self.config.pruning.target]
        for policy in self.config.checkpoint.policy.values():
            targets += getattr(policy, "targets", [])
        watched = {"metric": monitor.metric, "mode": monitor.mode}
        with self.without("no report"):
            files = kept.mine()
            tables.print_report(self.console, self.directory, **watched, targets=targets, kept=files)
        if self.config.plot:
            with self.without("no curves"):
                if curves := plots.plot(self.directory, monitor.metric, monitor.mode):
                    log.info("curves: %s", curves)
                else:
                    log.info("no curves.png, since matplotlib is not installed")
