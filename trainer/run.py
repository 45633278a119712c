"""One run, from the composed configuration to its report."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.lock import one_writer, present
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import RunEnd
from peakpoint.checkpointing.manager import Manager, Options
from peakpoint.checkpointing.storage.listing import Index
from peakpoint.checkpointing.storage.store import Store
from peakpoint.trainer.build import Parts, build, check_built, dense_macs
from peakpoint.trainer.config import hydra_overrides, unheeded
from peakpoint.trainer.config.check import name_template, plain
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.data.settings import note_root
from peakpoint.trainer.ending import Ending, read_test_set
from peakpoint.trainer.listeners import mirror
from peakpoint.trainer.listeners.console import ConsoleHandler, ConsoleLogger, LogLines
from peakpoint.trainer.listeners.events import Apart, Attempt, Listener, Publisher
from peakpoint.trainer.listeners.jsonl import JsonLines
from peakpoint.trainer.nonfinite import with_last_good
from peakpoint.trainer.reports import run_record as record
from peakpoint.trainer.reports.opening import opening
from peakpoint.trainer.resume import advice, pruning, reproduction
from peakpoint.trainer.resume.plan import Plan
from peakpoint.trainer.run_directory import refuse_taken
from peakpoint.trainer.start import CHECKPOINTS, Start, find_start, record_attempt, restore
from peakpoint.trainer.state import read_checkpoint
from peakpoint.trainer.usage import Usage

log = logging.getLogger("peakpoint")


def run(config: Config, cfg: DictConfig, plan: Plan, directory: Path) -> int:
    """Train in `directory` and report; returns the exit code.

    It is 0, or 128 + the signal that ended it, or 1 for a reproduction that differs from its run.

    `config` is `cfg`, the configuration as composed, checked. Raises UserError or CheckpointError with what
    went wrong as one line. From the moment the attempt is recorded it is also in status.json and train.log; a
    start that is refused leaves every byte as it was.
    """
    remote = mirror.connect(config.checkpoint.mirror, directory)
    watched = any(isinstance(logger, ConsoleLogger) for logger in config.logger.values())
    console = Console(quiet=not watched)
    with one_writer(directory), _logging_to(console if watched else Console(), watched):
        if plan.run and (done := advice.finished(cfg, config, plan)):
            log.info(done)
            return 0
        if directory != plan.run:
            refuse_taken(directory)
        start = find_start(cfg, plan, directory)
        saved = read_checkpoint(start.source / start.manifest.file) if start.manifest else None
        effective, ramp = pruning.resumed(cfg, saved)
        config = plain(effective)
        repetition = reproduction.find(cfg, plan, start.record)
        if plan.run or repetition:
            note_root(config.data.root, by_record=plan.root_recorded)
        resolved = _resolved(effective)
        parts = build(config, resolved, ramp)
        if record.MACS not in start.record:
            start.record[record.MACS] = dense_macs(config, parts.data)
        if repetition:
            start.record["reproduces"] = repetition.begun(
                {**record.code(), **record.machine(), "data": parts.data.fingerprint},
                repeatable=parts.loop.device.type == "cpu" or config.deterministic,
            )
        restore(start, config, parts, saved, named=plan.file is not None)
        for logger in config.logger.values():
            logger.check(directory)
        with parts.loop.signals():  # before anything is written: a signal then waits for a state to save
            own = start.source == directory / CHECKPOINTS
            target = _store(directory, start.record["run"], start.index if own else None)
            usage = record_attempt(directory, start, parts, resolved, cfg)
            for doubt in unheeded.doubts(config, plan.typed):
                log.warning(doubt)
            ending = Ending(config, directory, console)
            with mirror.uploading(config.checkpoint.mirror, remote, target) as mirrors:
                with _recording(directory, usage):
                    manager = _manager(config, parts, start, target)
                    if saved:
                        manager.load_state_dict(saved["policies"])
                    with with_last_good(target.root, target.run, parts.data.num_classes):
                        end, lost = _train(parts, manager, ending, mirrors, usage, resolved)
                if end is None:
                    return _interrupted(present(directory, or_named=True), parts, usage)
                ending.finish(target, lost, reason=end.reason, **_facts(parts), **usage.facts())
                if repetition and not parts.loop.signal:
                    return repetition.ended(ending.directory, start.record["reproduces"])
                # A signal may have come during the report.
                return 128 + parts.loop.signal if parts.loop.signal else 0


def _store(directory: Path, run: str, index: Index | None) -> Store:
    try:
        return Store(directory / CHECKPOINTS, run, index)
    except CheckpointError as error:
        raise UserError(f"{error} Another directory is named with hydra.run.dir=DIR.") from None


@contextlib.contextmanager
def _recording(directory: Path, usage: Usage) -> Iterator[None]:
    """Record an error that ends the run in status.json and train.log."""
    try:
        yield
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        record.log_failure(error)
        record.end(directory, state, error=record.sentence(error), **usage.facts())
        raise


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain values, without the settings of this attempt alone."""
    values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in hydra_overrides.OWN}


def _manager(config: Config, parts: Parts, start: Start, target: Store) -> Manager:
    here = start.manifest is not None and start.source == target.root
    options = Options(
        background=config.checkpoint.background,
        on_error=config.checkpoint.on_error.value,
        compress=config.checkpoint.compress,
        when_busy=config.checkpoint.when_busy.value,
        name=name_template(config),
        git_commit=start.record["attempts"][-1]["git_commit"],
        resumed_from=start.manifest.file if start.manifest and here else None,
    )
    return Manager(target, parts.policies, parts.state.gather, options=options)


def _train(
    parts: Parts,
    manager: Manager,
    ending: Ending,
    mirrors: Sequence[Listener],
    usage: Usage,
    resolved: dict[str, Any],
) -> tuple[RunEnd | None, int]:
    """Train, then evaluate the test set.

    Returns the end, None when a signal came first, and the number of rows that metrics.jsonl lacks.
    """
    config, directory, progress = ending.config, ending.directory, parts.state.progress
    rows = JsonLines(directory, progress.step, progress.evaluated_steps, usage.seconds)
    attempt = Attempt(
        directory, ending.console, progress.step, parts.total_steps, manager.store.run, resolved
    )
    listeners: list[Listener] = [rows, LogLines(parts.total_steps), *mirrors]
    apart: list[Apart] = []
    for line in opening(config, parts, directory / CHECKPOINTS):
        log.info("%s", line)
    try:
        for name, settings in config.logger.items():
            listener = check_built("logger", name, settings.build(attempt))
            apart.append(Apart(name, listener, ending.without))
        publish = Publisher([*listeners, *apart], manager)
        end = parts.loop.fit(publish)
        manager.drain()
        if isinstance(end, RunEnd) and config.test:
            read_test_set(parts, manager.store, publish, ending)
    finally:
        try:
            manager.close()
        finally:
            for listener in listeners:
                with ending.without(f"{type(listener).__name__} was not closed"):
                    listener.close()
            for each in apart:
                each.close()
    manager.store.check_place()
    finished = end if isinstance(end, RunEnd) and parts.loop.signal is None else None
    return finished, rows.missing


def _interrupted(directory: Path, parts: Parts, usage: Usage) -> int:
    number, facts = parts.loop.signal or 0, {**_facts(parts), **usage.facts()}
    record.end(directory, "interrupted", signal=number, **facts)
    log.warning("interrupted at step %d; to go on: %s", facts["step"], advice.command(directory))
    return 128 + number


def _facts(parts: Parts) -> dict[str, int]:
    """Return how far the run is, for status.json."""
    return {name: getattr(parts.state.progress, name) for name in ("epoch", "batch", "step", "skipped")}


@contextlib.contextmanager
def _logging_to(console: Console, every_line: bool) -> Iterator[None]:
    handler = ConsoleHandler(console, logging.INFO if every_line else logging.WARNING)
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
