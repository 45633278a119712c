"""Checkpoints for a user's own training loop: three calls to save, one to load, one to resume."""

import logging
import math
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from peakpoint.base import given
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.checkpointing.metrics import mode_of
from peakpoint.checkpointing.policies import ranking
from peakpoint.checkpointing.policies.best import Best, Metric
from peakpoint.checkpointing.policies.interval import Interval
from peakpoint.checkpointing.policies.ranking import Peak, Role
from peakpoint.checkpointing.policy import Save, order
from peakpoint.checkpointing.state import objects, optimizer_state
from peakpoint.checkpointing.state.objects import Stateful, numbers
from peakpoint.checkpointing.state.rng import rng_state
from peakpoint.checkpointing.storage import listing, locate, store
from peakpoint.checkpointing.storage.manifest import MILESTONE, PRODUCTION, TIERS, TRAINING, Manifest
from peakpoint.checkpointing.storage.naming import safe_name
from peakpoint.library.loading import load_checkpoint
from peakpoint.library.recorder import MODE, Recorder

log = logging.getLogger("peakpoint")


class CheckpointManager:
    """The checkpoints of one training in one directory, which can be opened again to continue.

    A save is on disk when its call returns. Raises CheckpointError, one line with a remedy, when the
    directory cannot be written to or a state cannot be saved; older checkpoints are then intact.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        max_training_checkpoints: int = 3,
        save_optimizer: bool = True,
        save_scheduler: bool = True,
        compress: bool = False,
    ) -> None:
        """Open a directory; `compress` packs zeros away losslessly, which helps with pruned networks."""
        root = given.path(checkpoint_dir, "checkpoint_dir")
        keep_last = given.whole("max_training_checkpoints", max_training_checkpoints, least=1)
        self._rolling = Interval(epochs=None, steps=None, keep_last=keep_last)
        self._save_optimizer = given.flag("save_optimizer", save_optimizer)
        self._save_scheduler = given.flag("save_scheduler", save_scheduler)
        self._recorder = Recorder(root, compress=given.flag("compress", compress))
        self._step = next((m.global_step for m in reversed(listing.in_tier(root, TRAINING))), 0)
        # Model, optimizer and scheduler of the last training checkpoint, for milestones; weak references.
        self._living: tuple[Any, Any, Any] | None = None

    @property
    def root(self) -> Path:
        """Return the directory, after a move its present path."""
        return self._recorder.root

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unlock the directory for other processes, as the end of this one does too."""
        self._recorder.close()

    def save_training_checkpoint(
        self,
        model: nn.Module,
        optimizer: Stateful,
        *,
        epoch: int,
        step: int,
        metrics: Mapping[str, Any] | None = None,
        scheduler: Stateful | None = None,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        batch: int | None = None,
        epoch_complete: bool = False,
    ) -> Path:
        """Save everything that a resume needs, and delete the oldest beyond max_training_checkpoints.

        `epoch` and `step` count as the caller counts. `batch` is the number of finished batches of this
        epoch, and `epoch_complete` means all of them. They decide `next_epoch` and `next_batch` of a resume.
        """
        given.network(model)
        given.stateful("optimizer", optimizer, optional=not self._save_optimizer)
        given.stateful("scheduler", scheduler, optional=True)
        epoch, step = given.whole("epoch", epoch), given.whole("step", step)
        batch = None if batch is None else given.whole("batch", batch)
        values = numbers(metrics)
        self._living = (weakref.ref(objects.unwrap(model)), _weak(optimizer), _weak(scheduler))
        self._step = step
        stem = f"checkpoint_epoch_{epoch:04d}_step_{step:08d}"
        save = Save(Interval.tag, f"step {step} of epoch {epoch}", TRAINING, stem)
        notes = {**objects.environment(model), **given.mapping("metadata", metadata)}
        role = self._recorder.role(
            save, epoch=epoch, step=step, metrics=values, config=config, metadata=notes
        )
        state = {
            **self._state(optimizer, scheduler),
            "batch": batch,
            "epoch_complete": given.flag("epoch_complete", epoch_complete),
        }
        saved = self._recorder.save(role, state, model, pointer="latest")
        mine = self._recorder.mine(TRAINING)
        kept = self._rolling.keeps(mine)
        if len(kept) < len(mine):
            store.verify(self.root, saved, threads=1)
            reason = f"older than the last {len(kept)}"
            self._recorder.store.delete_each({m: reason for m in mine if m not in kept})
        return self.root / saved.file

    def save_milestone_checkpoint(
        self,
        model: nn.Module,
        metric_value: float,
        metric_name: str,
        epoch: int,
        config: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        mode: str | None = None,
    ) -> Path | None:
        """Save if `metric_value` is better than every milestone of this metric on disk; else return None.

        `mode` is max or min; None takes it from the last milestone of this metric, else from its name
        (`peakpoint.checkpointing.metrics`). Raises CheckpointError where neither says. The optimizer and
        scheduler are those of the last training checkpoint of this model unless given. NaN and infinity are
        never best.
        """
        if mode not in (None, "max", "min"):
            raise CheckpointError(f"mode={mode!r} is not a mode: it must be max or min.")
        given.network(model)
        given.stateful("optimizer", optimizer, optional=True)
        given.stateful("scheduler", scheduler, optional=True)
        mode = self._mode(given.text("metric_name", metric_name), mode)
        epoch = given.whole("epoch", epoch)
        values = numbers({metric_name: metric_value})
        best = Best(metrics={metric_name: Metric(mode=mode, min_delta=0.0)}, keep=None)
        best.load_state_dict({"best": self._peak(metric_name, mode), "unranked": {}})
        decisions = best.decide(EvalEnd(epoch, self._step, values, 0.0, 0))
        if not math.isfinite(values[metric_name]):
            log.warning("%s is %s at epoch %s: it is not saved.", metric_name, values[metric_name], epoch)
        if not decisions:
            return None
        (save,) = decisions
        assert isinstance(save, Save)
        known = self._known(model)
        optimizer, scheduler = optimizer or known[0], scheduler or known[1]
        notes = {**objects.environment(model), **given.mapping("metadata", metadata), MODE: mode}
        role = self._recorder.role(
            save, epoch=epoch, step=self._step, metrics=values, config=config, metadata=notes
        )
        # A milestone follows an evaluation, which follows a whole epoch.
        state = {**self._state(optimizer, scheduler), "batch": None, "epoch_complete": True}
        return self.root / self._recorder.save(role, state, model, pointer=save.tag).file

    def save_production_checkpoint(
        self,
        model: nn.Module,
        *,
        version: str,
        config: Mapping[str, Any],
        metrics: Mapping[str, Any],
        model_card: Mapping[str, Any],
        example_inputs: Any = None,
    ) -> Path:
        """Save the weights alone as a release, with its config and its model card, as JSON and as a page.

        `version` is semantic, such as 1.0.0, and never used twice; weights of other names or shapes than in
        the release before need a new major version. The name is config["name"], or that of the class.
        `example_inputs` are arguments of the network (a tensor, a tuple of tensors, or a mapping of names to
        tensors): its outputs are kept, so that `verify --golden` can check that it still is the same
        network. A network for images, with the config of `network.describe`, needs none.
        """
        given.network(model)
        made = self._recorder.release(
            model,
            version=version,
            config=config,
            metrics=numbers(metrics),
            card=model_card,
            example_inputs=example_inputs,
        )
        return self.root / made.file

    def list_checkpoints(self) -> dict[str, list[Path]]:
        """Return the files of each tier, oldest first, releases by version; not verified."""
        return {tier: [self.root / m.file for m in listing.in_tier(self.root, tier)] for tier in TIERS}

    def get_latest_checkpoint(self, tier: str) -> Path | None:
        """Return the newest of a tier that verifies, in production the highest version; None without one.

        Newer damaged files are moved to quarantine with a warning.
        """
        manifest = locate.newest_in(self.root, tier)
        return self.root / manifest.file if manifest else None

    def cleanup_old_checkpoints(self, tier: str, keep: int) -> list[Path]:
        """Delete all but the newest `keep` of training, or the best `keep` of each metric of milestone.

        Returns the deleted files. Damaged ones are moved to quarantine first and do not count. Releases are
        never deleted.
        """
        listing.check_tier(tier)
        keep = given.whole("keep", keep, least=1)
        if tier == PRODUCTION:
            raise CheckpointError("Releases are never cleaned up: delete the files by hand if you must.")
        tags = sorted({tag for m in self._recorder.mine(tier) for tag in m.tags})
        kept: dict[Manifest, str] = {}
        for tag in tags:
            locate.newest(self.root, [m for m in self._recorder.mine(tier) if tag in m.tags])
            mine = [m for m in self._recorder.mine(tier) if tag in m.tags]
            if tier == TRAINING:
                kept |= ranking.newest(mine, tag, keep)
            elif mine:
                metric = next(iter(mine[-1].metrics))
                mode = str((mine[-1].metadata or {}).get(MODE))
                kept |= ranking.best(mine, Role(tag, metric, mode, 0.0), keep)
        files = {m.file for m in kept}
        doomed = [m for m in self._recorder.mine(tier) if m.file not in files]
        gone = self._recorder.store.delete_each(dict.fromkeys(doomed, f"cleaned up to the last {keep}"))
        return [self.root / m.file for m in gone]

    def load_checkpoint(
        self,
        path: str | Path,
        model: nn.Module,
        optimizer: Stateful | None = None,
        scheduler: Stateful | None = None,
        device: str | torch.device | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint as the function load_checkpoint does."""
        return load_checkpoint(path, model, optimizer, scheduler, device)

    def _mode(self, metric: str, word: str | None) -> str:
        """Return the mode of a metric: as given, as in its last milestone, or by its name."""
        tag = safe_name(f"best_{metric}")
        last = [(m.metadata or {}).get(MODE) for m in self._recorder.mine(MILESTONE) if tag in m.tags][-1:]
        before = str(last[0]) if last and last[0] in ("max", "min") else None
        if word and before not in (None, word):
            log.warning(
                "mode=%s is used for %s, although its last milestone here had mode=%s.", word, metric, before
            )
        remedy = 'give mode="max" or mode="min" to save_milestone_checkpoint.'
        return word or before or mode_of(metric, remedy)

    def _peak(self, metric: str, mode: str) -> dict[str, Peak]:
        pairs = ranking.scored(self._recorder.mine(MILESTONE), safe_name(f"best_{metric}"), metric)
        if not pairs:
            return {}
        value, manifest = max(pairs, key=lambda pair: order(pair[0], mode))
        return {metric: Peak(value=value, epoch=manifest.epoch)}

    def _known(self, model: nn.Module) -> tuple[Any, Any]:
        """Return the optimizer and scheduler that this model was last saved with, None for deleted ones."""
        if self._living is None or self._living[0]() is not objects.unwrap(model):
            return None, None
        return tuple(ref and ref() for ref in self._living[1:])

    def _state(self, optimizer: Stateful | None, scheduler: Stateful | None) -> dict[str, Any]:
        with_optimizer = self._save_optimizer and optimizer is not None
        with_scheduler = self._save_scheduler and scheduler is not None
        return {
            "optimizer_state_dict": optimizer.state_dict() if optimizer and with_optimizer else None,
            "optimizer": optimizer_state.kind(optimizer) if optimizer and with_optimizer else None,
            "scheduler_state_dict": scheduler.state_dict() if scheduler and with_scheduler else None,
            "rng_state": rng_state(),
        }


def _weak(value: Any) -> Any:
    try:
        return None if value is None else weakref.ref(value)
    except TypeError:  # of a class with __slots__
        return lambda: value
