"""What an attempt begins with: the record that it continues and the checkpoint that it restores."""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from peakpoint.base import files
from peakpoint.base.bounded import lines
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing.policy import load_counters
from peakpoint.checkpointing.state.differences import flat
from peakpoint.checkpointing.storage import foreign, listing, locate, quarantine, store
from peakpoint.checkpointing.storage.listing import Index
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.trainer import run_directory
from peakpoint.trainer.build import Parts
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.listeners.retrying_file import open_logs
from peakpoint.trainer.reports import run_record as record
from peakpoint.trainer.resume import advice, refusals
from peakpoint.trainer.resume.plan import Plan
from peakpoint.trainer.usage import Usage

log = logging.getLogger("peakpoint")
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Start:
    """What an attempt begins with.

    `record` is the content of run.json with this attempt added, `manifest` the checkpoint to restore, None
    for a fresh start. `source` is the checkpoint folder that holds it, and `index` the manifests there.
    `damaged` are the checkpoints that do not verify, with the reason.
    """

    record: dict[str, Any]
    source: Path
    index: Index
    manifest: Manifest | None
    damaged: Sequence[tuple[str, str]] = ()


def find_start(cfg: DictConfig, plan: Plan, directory: Path) -> Start:
    """Find the checkpoint to restore and compose the record of this attempt; nothing is written.

    Raises UserError or CheckpointError.
    """
    known: dict[str, Any] = {}
    source, manifest = directory / CHECKPOINTS, None
    index = Index(source)
    damaged: Sequence[tuple[str, str]] = ()
    if plan.run:
        known = record.read_run(plan.run)
        if known["attempts"][-1] != plan.attempt:
            raise UserError(f"{plan.run} was resumed by another command meanwhile: try again.")
        saved = record.saved_config(plan.run, known["attempts"][-1])
        for change in refusals.check_changes(cfg, saved, plan.typed):
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
    """Return the checkpoint `file` of a run, else its newest that verifies or None, and the damaged ones."""
    if file is not None:
        return _given(root, file, run, index), ()
    found = locate.newest_verified(root, run, index)
    if found.others:
        log.warning("%s", listing.of_others(root, found.others))
    for name, reason in found.skipped:
        log.warning("%s is damaged, so an older one is used: %s", name, reason)
    if found.manifest is None:
        if found.skipped:
            raise CheckpointError(f"No checkpoint under {root} is intact, so the run cannot continue.")
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


def _given(root: Path, file: Path, run: str | None, index: Index) -> Manifest:
    """Return the manifest of `file`. Raises CheckpointError unless it verifies and is of the run."""
    for manifest in index.manifests():
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


def restore(start: Start, config: Config, parts: Parts, saved: dict[str, Any] | None, *, named: bool) -> None:
    """Load the checkpoint's contents into the objects of the run; warns of what differs from then.

    `named`: the checkpoint was given by its file, so it must leave something to train. Raises UserError or
    CheckpointError.
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
        more, bounds = advice.needed(config, progress.epoch, progress.step)
        raise UserError(
            f"{start.manifest.file} is from the end of the run (epoch {progress.number}, step "
            f"{progress.step}): there is nothing left to train. Add {' '.join(more)}, with {bounds}."
        )
    log.info("resumed %s: epoch %d, step %d", start.manifest.file, progress.epoch + 1, progress.step)


def record_attempt(
    directory: Path, start: Start, parts: Parts, resolved: dict[str, Any], cfg: DictConfig
) -> Usage:
    """Write run.json, status.json and the configuration: this attempt is added, earlier ones stay.

    From here on the start is accepted. Files that a killed process left half-written are removed. Returns the
    count of the run's time and memory, which begins.
    """
    run_directory.accept()
    saved = directory / record.HYDRA
    for folder in (directory, saved, *saved.glob("*/")):
        files.sweep(folder)
    if start.source.parent == directory:  # a fork leaves the run that it comes from as it is
        for file in quarantine.set_aside(start.source, start.damaged):
            log.info("moved to quarantine: %s", file)
    facts: dict[str, Any] = start.record
    facts["attempts"][-1]["hydra"] = record.save_config(directory, cfg)
    derived = {name: policy.derived for name, policy in parts.policies.items() if policy.derived}
    facts["attempts"][-1]["derived"] = flat({"checkpoint": {"policy": derived}}) if derived else {}
    open_logs()
    if len(facts["attempts"]) == 1:
        facts = {
            **facts,
            "config": resolved,
            "seed": resolved["seed"],
            **record.code(),
            **record.machine(),
            "data": parts.data.fingerprint,
        }
    else:
        facts = {**facts, record.NOW: resolved}
    # First the status: a run killed between the two writes must not look finished.
    usage = Usage(directory, parts.loop.device)
    record.set_status(directory, "running", **record.holder(), **usage.facts())
    record.write_json(directory / record.RUN, facts)
    return usage
