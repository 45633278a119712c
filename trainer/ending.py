"""The end of a run: its test, its record and its report. A failure here is a warning: the run is trained."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peakpoint.base.errors import PeakpointError, UserError
from peakpoint.base.files import write_atomic
from peakpoint.base.lock import present
from peakpoint.base.terminal import Console
from peakpoint.base.text import json_text
from peakpoint.checkpointing.policies.sparsity import peak
from peakpoint.checkpointing.state import objects, serialize
from peakpoint.checkpointing.storage import store
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.store import Store
from peakpoint.trainer.build import Parts
from peakpoint.trainer.config.explain import explain
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.evaluation import Classification
from peakpoint.trainer.listeners.events import Publisher, Tested
from peakpoint.trainer.reports import page, run_record, tables
from peakpoint.trainer.reports.history import objective, read_rows
from peakpoint.trainer.resume import advice

log = logging.getLogger("peakpoint")


class Ending:
    """Ends a run in `directory`; `notes` has a line for each part of the end that failed."""

    def __init__(self, config: Config, directory: Path, console: Console) -> None:
        self.config, self._directory, self.console = config, directory, console
        self.notes: list[str] = []

    @property
    def directory(self) -> Path:
        """Return the run's directory, where it is now."""
        return present(self._directory, or_named=True)

    @contextlib.contextmanager
    def without(self, missing: str) -> Iterator[None]:
        """Turn an error within into one warning, which begins with `missing`, and a note."""
        try:
            yield
        except Exception as error:
            expected = isinstance(error, PeakpointError | OSError)
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
        monitor, target = self.config.checkpoint.monitor, self.config.pruning.target
        with contextlib.suppress(UserError):  # the report says what is wrong with metrics.jsonl
            evals = read_rows(self.directory).evals
            facts["objective"] = objective(evals, monitor.metric, monitor.mode, target)
        self._record(facts)
        if lost:
            self.note(f"no report: {self.directory / run_record.METRICS} lacks {lost} rows.")
        else:
            self._report(kept)
        with self.without("no commands to go on with"):
            self.console.say("")
            self.console.say("Next:")
            for line in advice.after(self.config, self.directory, facts["epoch"], facts["step"]):
                self.console.say(f"  {line}")
        if len(self.notes) > known:
            self._record(facts)

    def _record(self, facts: dict[str, Any]) -> None:
        notes = {"notes": self.notes} if self.notes else {}
        run_record.end(self.directory, "finished", **facts, **notes)

    def _report(self, kept: Store) -> None:
        """Print the peak against the final epoch and what is kept, and write report.html."""
        monitor, targets = self.config.checkpoint.monitor, [self.config.pruning.target]
        for policy in self.config.checkpoint.policy.values():
            targets += getattr(policy, "targets", [])
        watched = {"metric": monitor.metric, "mode": monitor.mode}
        with self.without("no report"):
            files = kept.mine()
            tables.print_report(self.console, self.directory, **watched, targets=targets, kept=files)
        if self.config.report:
            with self.without("no report.html"):
                log.info("report: %s", page.write([self.directory], self.directory))


def select(config: Config, target: Store) -> Manifest | None:
    """Return the checkpoint that validation chose: the best at the target sparsity, or of all when dense.

    None when no policy kept one.
    """
    monitor = config.checkpoint.monitor
    return peak(target.mine(), metric=monitor.metric, mode=monitor.mode, target=config.pruning.target)


def read_test_set(parts: Parts, target: Store, publish: Publisher, ending: Ending) -> None:
    """Evaluate the final and the selected weights on the test set, which nothing else reads.

    A signal cuts it short: a resumed run does it again.
    """
    loop, progress = parts.loop, parts.state.progress

    def test(which: str, epoch: int, step: int, file: str | None) -> None:
        counts = Classification(parts.data.num_classes, loop.device, confusion=True)
        metrics = loop.evaluate(parts.data.test_batches(), counts)
        if loop.signal is None:
            size = objects.packed_bytes(objects.unwrap(parts.state.model).state_dict())
            zeros = loop.zeros().prunable
            publish.notify(Tested(which, epoch, step, metrics, zeros, counts.count, size, file))
            position = {"which": which, "epoch": epoch, "step": step}
            found = {**position, "classes": list(parts.data.classes), "cells": counts.cells()}
            with ending.without(f"no {run_record.CONFUSION}"):
                write_atomic(ending.directory / run_record.CONFUSION, json_text(found))

    with ending.without("the final weights were not tested"):
        test("final", progress.number, progress.step, None)
    if loop.signal is not None:
        return
    with ending.without("the selected checkpoint was not tested"):
        chosen = select(ending.config, target)
        if chosen is None:
            log.warning("no checkpoint was kept as the best, so the final weights are all there is to test")
            return
        store.verify(target.root, chosen)
        objects.load_weights(parts.state.model, serialize.load(target.path(chosen))["model_state_dict"])
        test("selected", chosen.epoch, chosen.global_step, str(target.path(chosen)))
