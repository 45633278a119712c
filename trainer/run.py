"""One run, from the composed configuration to its report."""

import contextlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from peakpoint.base.bounded import lines
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.lock import followed, one_writer
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import RunEnd
from peakpoint.checkpointing.manager import Manager, Options
from peakpoint.checkpointing.policy import load_counters
from peakpoint.checkpointing.storage import foreign, listing, quarantine, store
from peakpoint.checkpointing.storage.index import Index
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.store import Store
from peakpoint.trainer.build import Parts, build
from peakpoint.trainer.config import hydra_overrides, unheeded
from peakpoint.trainer.config.check import name_template, plain
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.data import roots
from peakpoint.trainer.ending import Ending
from peakpoint.trainer.listeners import mirror
from peakpoint.trainer.listeners.console import ConsoleHandler, ConsoleListener
from peakpoint.trainer.listeners.events import Listener, Publisher
from peakpoint.trainer.listeners.jsonl import JsonLines
from peakpoint.trainer.listeners.retrying_file import open_logs
from peakpoint.trainer.listeners.tensorboard import TensorBoard, check_tensorboard
from peakpoint.trainer.nonfinite import with_last_good
from peakpoint.trainer.reports import run_record as record
from peakpoint.trainer.reports.final import read_test_set
from peakpoint.trainer.resuming import continuing, pruning, resume
from peakpoint.trainer.resuming.place import keep
from peakpoint.trainer.state import contents

log = logging.getLogger("peakpoint")
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Start:
    """What an attempt begins with.

    `record` is the run.json to go on with, `manifest` the checkpoint to restore, in the checkpoint root
    `source`, found in its `index`; None for a fresh start. `damaged` are those that were passed over, with
    the reason.
    """

    record: dict[str, Any]
    source: Path
    index: Index
    manifest: Manifest | None
    damaged: Sequence[tuple[str, str]] = ()


def run(config: Config, cfg: DictConfig, plan: resume.Plan, directory: Path) -> int:
    """Train in `directory` and report; returns the exit code: 0, or 128 + the signal that ended it.

    `config` is `cfg`, the configuration as composed, checked. Raises UserError or CheckpointError with what
    went wrong as one line. From the moment the attempt is recorded it is also in status.json and train.log; a
    start that is refused leaves every byte as it was.
    """
    place = mirror.place(config.checkpoint)
    console = Console()
    with one_writer(directory), _logging_to(console):
        if plan.run and (done := continuing.finished(cfg, config, plan)):
            log.info(done)
            return 0
        if directory != plan.run:
            resume.refuse_taken(directory)
        start = _start(cfg, plan, directory)
        saved = contents(start.source / start.manifest.file) if start.manifest else None
        effective, ramp = pruning.resumed(cfg, saved)
        config = plain(effective)
        if plan.run:
            roots.named(config.data.root, by_record=plan.root_recorded)
        resolved = _resolved(effective)
        parts = build(config, resolved, ramp)
        _restore(start, config, parts, saved, named=plan.file is not None)
        if config.tensorboard:
            check_tensorboard(directory)
        with parts.loop.signals():  # before the first byte: a signal lets it come to a state to save
            own = start.source == directory / CHECKPOINTS
            target = Store(directory / CHECKPOINTS, start.record["run"], start.index if own else None)
            _begin(directory, start, parts, resolved, cfg)
            for doubt in unheeded.doubts(config, plan.typed):
                log.warning(doubt)
            ending = Ending(config, directory, console)
            with mirror.mirror(config.checkpoint, place, target) as mirrors:
                with _recording(directory):
                    manager = _manager(config, parts, start, target)
                    if saved:
                        manager.load_state_dict(saved["policies"])
                    with with_last_good(target.root, target.run, parts.data.num_classes):
                        end, lost = _train(parts, manager, ending, mirrors)
                if end is None:
                    return _interrupted(followed(directory), parts)
                ending.finish(target, lost, reason=end.reason, **_facts(parts))
                # One may have come while this was written.
                return 128 + parts.loop.signal if parts.loop.signal else 0


@contextlib.contextmanager
def _recording(directory: Path) -> Iterator[None]:
    """What ends the run within is in status.json and in train.log."""
    try:
        yield
    except BaseException as error:
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        record.log_failure(error)
        record.end(directory, state, error=record.sentence(error))
        raise


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain values, without what concerns this attempt alone."""
    values = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in hydra_overrides.OWN}


def _start(cfg: DictConfig, plan: resume.Plan, directory: Path) -> Start:
    """Find what to go on from, and write down this attempt, without touching the disk yet."""
    known: dict[str, Any] = {}
    source, manifest = directory / CHECKPOINTS, None
    index = Index(source)
    damaged: Sequence[tuple[str, str]] = ()
    if plan.run:
        known = record.read_run(plan.run)
        if known["attempts"][-1] != plan.attempt:
            raise UserError(f"{plan.run} was resumed by another command meanwhile: try again.")
        saved = record.saved_config(plan.run, known["attempts"][-1])
        for change in resume.check_changes(cfg, saved, plan.typed):
            log.info("changed since the last attempt: %s", change)
        index = Index(source := plan.run / CHECKPOINTS)
        manifest, damaged = _checkpoint(source, plan.file, known.get("run"), index)
        if directory != plan.run:  # a fork: its own run, with its own checkpoints
            known = {"forked_from": str(plan.run), "data": known.get("data")}
    attempts = known.get("attempts", [])
    hydra = HydraConfig.get()
    attempt = record.attempt(
        len(attempts) + 1,
        record.typed(),
        hydra.runtime.choices,
        f"{source.parent}/{CHECKPOINTS}/{manifest.file}" if manifest else None,
    )
    new = {**known, "run": known.get("run", uuid.uuid4().hex), "attempts": [*attempts, attempt]}
    return Start(new, source, index, manifest, damaged)


def _checkpoint(
    root: Path, file: Path | None, run: str | None, index: Index
) -> tuple[Manifest | None, Sequence[tuple[str, str]]]:
    """The named checkpoint of a run, or its newest that verifies, None if it has saved none; the damaged."""
    if file is not None:
        return _named(root, file, run, index), ()
    found = store.newest_verified(root, run, index)
    if found.others:
        log.warning("%s", listing.of_others(root, found.others))
    for name, reason in found.skipped:
        log.warning("%s is damaged, so an older one is used: %s", name, reason)
    if found.manifest is None:
        if found.skipped:
            raise CheckpointError(f"No checkpoint under {root} is intact, so the run cannot go on.")
        if found.others:
            raise CheckpointError(
                f"The checkpoints under {root} are of another run, and none of this run is there: put its "
                "own back, or take those away to start at the beginning."
            )
        metrics = root.parent / record.METRICS
        if metrics.exists() and any('"kind": "save"' in line for line in lines(metrics)):
            raise CheckpointError(
                f"The run has saved checkpoints, and none is left under {root}: put them back, or start "
                "a new run."
            )
        log.info("the run has saved no checkpoint yet: starting at the beginning")
    return found.manifest, found.skipped


def _named(root: Path, file: Path, run: str | None, index: Index) -> Manifest:
    """The checkpoint that was named. Raises CheckpointError unless it verifies and is the run's."""
    for manifest in index.look():
        if (root / manifest.file).resolve() == file:
            if run not in (None, manifest.run):
                raise CheckpointError(
                    f"{file} is of another run than that of {root.parent}: name a checkpoint of this run, or "
                    "the directory of its own."
                )
            store.verify(root, manifest)
            return manifest
    raise CheckpointError(
        f"{file} has no manifest beside it, so it cannot be resumed from.{foreign.described(file)}"
    )


def _restore(
    start: Start, config: Config, parts: Parts, saved: dict[str, Any] | None, *, named: bool
) -> None:
    """Put the checkpoint's contents into the living objects; says what is not as it was.

    `named`: the checkpoint was asked for by its file, so it must leave something to train.
    """
    if start.record.get("data") and start.record["data"] != parts.data.fingerprint:
        raise UserError("data.root holds other data than the run was started with: its fingerprint differs.")
    if start.manifest is None or saved is None:
        return
    parts.state.restore(saved)
    load_counters(parts.policies, saved["policies"])  # the manager does again; here nothing is written yet
    for name, now in parts.state.arithmetic.items():
        if (before := saved["metadata"].get(name)) != now:
            log.warning("%s was %s and is %s now: results will not be equal bit for bit.", name, before, now)
    progress = parts.state.progress
    if named and parts.loop.done:
        more, bounds = continuing.needed(config, progress.epoch, progress.step)
        raise UserError(
            f"{start.manifest.file} is from the end of the run (epoch {progress.number}, step "
            f"{progress.step}): there is nothing left to train. Add {' '.join(more)}, with {bounds}."
        )
    log.info("resumed %s: epoch %d, step %d", start.manifest.file, progress.epoch + 1, progress.step)


def _begin(directory: Path, start: Start, parts: Parts, resolved: dict[str, Any], cfg: DictConfig) -> None:
    """Write run.json and what goes with it: facts of the first attempt stay, this attempt is added.

    Here the start is accepted; what an earlier one left half-written when it was killed is swept.
    """
    keep()
    saved = directory / record.HYDRA
    for folder in (directory, saved, *saved.glob("*/")):
        store.sweep(folder)
    if start.source.parent == directory:  # a fork leaves the run that it comes from as it is
        for file in quarantine.set_aside(start.source, start.damaged):
            log.info("moved to quarantine: %s", file)
    facts: dict[str, Any] = start.record
    facts["attempts"][-1]["hydra"] = record.save_config(directory, cfg)
    open_logs()
    if len(facts["attempts"]) == 1:
        facts = {
            **facts,
            "config": resolved,
            "seed": resolved["seed"],
            **record.code(),
            **record.environment(),
            "data": parts.data.fingerprint,
        }
    else:
        facts = {**facts, record.NOW: resolved}
    # First the status: killed between the two, what was asked for now is not taken for finished.
    record.set_status(directory, "running", **record.holder())
    record.write_json(directory / record.RUN, facts)


def _manager(config: Config, parts: Parts, start: Start, target: Store) -> Manager:
    here = start.manifest is not None and start.source == target.root
    options = Options(
        background=config.checkpoint.background,
        on_error=config.checkpoint.on_error,
        compress=config.checkpoint.compress,
        when_busy=config.checkpoint.when_busy,
        name=name_template(config),
        git_commit=start.record["attempts"][-1]["git_commit"],
        resumed_from=start.manifest.file if start.manifest and here else None,
    )
    return Manager(target, parts.policies, parts.state.gather, options=options)


def _train(
    parts: Parts, manager: Manager, ending: Ending, mirrors: Sequence[Listener]
) -> tuple[RunEnd | None, int]:
    """Fit and evaluate the test set; returns the end, and how many rows of metrics.jsonl found no room.

    The end is None when a signal came before it.
    """
    config, directory, progress = ending.config, ending.directory, parts.state.progress
    rows = JsonLines(directory, progress.step, progress.evaluated_steps)
    listeners: list[Listener] = [rows, *mirrors]
    if config.tensorboard:
        listeners.append(TensorBoard(directory, progress.step))
    listeners.append(ConsoleListener(ending.console, total_steps=parts.total_steps, start_step=progress.step))
    publish = Publisher(listeners, manager)
    device, per_epoch = parts.state.arithmetic["device"], parts.data.steps_per_epoch
    log.info("%s on %s, %d steps an epoch, in %s", config.model.name, device, per_epoch, directory)
    if config.pruning.target:
        found = parts.loop.zeros()
        share = found.prunable_count / found.overall_count
        log.info(
            "to prune: %.2f%% of the weights of layers, which are %.2f%% of all %d parameters",
            100 * config.pruning.target, 100 * share, found.overall_count,
        )  # fmt: skip
    try:
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
    manager.store.check_place()
    finished = end if isinstance(end, RunEnd) and parts.loop.signal is None else None
    return finished, rows.missing


def _interrupted(directory: Path, parts: Parts) -> int:
    number, facts = parts.loop.signal or 0, _facts(parts)
    record.end(directory, "interrupted", signal=number, **facts)
    log.info("interrupted at step %d; to go on: %s", facts["step"], continuing.command(directory))
    return 128 + number


def _facts(parts: Parts) -> dict[str, int]:
    """How far the run is, for status.json."""
    return {name: getattr(parts.state.progress, name) for name in ("epoch", "batch", "step", "skipped")}


@contextlib.contextmanager
def _logging_to(console: Console) -> Iterator[None]:
    handler = ConsoleHandler(console)
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
