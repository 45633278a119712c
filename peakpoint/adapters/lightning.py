"""A Lightning callback: the policies decide, the store keeps, and Lightning resumes from the files.

    best = Best(metrics={"val_acc": Metric(mode="max", min_delta=0.0)}, keep=3)
    rolling = Interval(epochs=1, steps=None, keep_last=2)
    callback = PeakpointCheckpoint("checkpoints", {"best": best, "rolling": rolling})
    trainer = Trainer(callbacks=[callback], enable_checkpointing=False)
    trainer.fit(model, ckpt_path=newest("checkpoints"), weights_only=True)

Each file is both a checkpoint of Lightning and one of this library.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from peakpoint.adapters.common import Adapter, newest, numbers, plain
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.events import EpochEnd, Event, RunEnd, StepEnd
from peakpoint.checkpointing.state.rng import restore_rng, rng_state

__all__ = ["PeakpointCheckpoint", "newest"]


class PeakpointCheckpoint(Adapter, Callback):
    """Saves what `policies` ask for, under `root`; their Stop ends the fit.

    Epochs count from 0, as Lightning shows them. The state of every random number generator is saved and
    restored, which Lightning does not do. on_error is `warn` or `stop`. compress packs zeros away, exactly;
    Lightning reads such a file after `peakpoint unpack`. For training in one process: raises
    CheckpointError otherwise.
    """

    _counters: Mapping[str, Any] | None = None
    _rng: Mapping[str, Any] | None = None
    _step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the directory before anything is trained."""
        if stage != "fit":
            return
        if trainer.world_size > 1:
            raise CheckpointError("PeakpointCheckpoint saves a training of one process: use devices=1.")
        file = Path(str(trainer.ckpt_path)) if trainer.ckpt_path else None
        mine = file is not None and file.resolve().parent.parent == self.root.resolve()
        self._step, self._waiting = 0, []
        self._open(lambda: _state(trainer), f"{file.parent.name}/{file.name}" if file and mine else None)

    def state_dict(self) -> dict[str, Any]:
        """Return the policies' counters."""
        return {name: policy.state_dict() for name, policy in self.policies.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the counters back; settings stay those of this run."""
        self._counters = state_dict

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the random number generators' state until the fit starts."""
        self._rng = checkpoint.get("rng_state")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the counters and the random numbers of the checkpoint."""
        assert self._manager is not None
        if self._counters is not None:
            self._manager.load_state_dict(self._counters)
        # Before the loader makes its first iterator, which draws the order of the epoch.
        if self._rng is not None:
            restore_rng(self._rng)
        self._counters = self._rng = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Publish StepEnd after each optimizer step; the last of an epoch waits for EpochEnd."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            event = StepEnd(trainer.current_epoch, self._step)
            loop = trainer.fit_loop.epoch_loop
            fetcher = trainer.fit_loop._data_fetcher
            if fetcher is not None and loop._should_check_val_fx(fetcher) and not loop._skip_next_val:
                self._waiting.append(event)  # a validation follows at once, of the same weights
            else:
                self._collect(trainer, event)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish EvalEnd; at the end of an epoch it waits for EpochEnd, so that the two share a file."""
        if trainer.sanity_checking or self._manager is None:
            return
        metrics = numbers(trainer.callback_metrics)
        epoch, step = trainer.current_epoch, trainer.global_step
        self._collect(trainer, self._zeros.measured(epoch, step, metrics, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish the last step of an epoch, its evaluation and EpochEnd as one moment."""
        waiting, self._waiting = self._waiting, []
        epoch = trainer.current_epoch
        self._handle(trainer, *waiting, EpochEnd(epoch, trainer.global_step, done=epoch + 1))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Publish RunEnd, whatever ended the fit."""
        last = max(0, trainer.current_epoch - 1)  # Lightning has counted on
        self._handle(trainer, RunEnd(last, trainer.global_step, "the fit is over"))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish the save in flight; a state that an error left behind is not saved."""
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finish the save in flight."""
        self.close()

    def _collect(self, trainer: Trainer, event: Event) -> None:
        """Handle an event; at the end of an epoch it waits for EpochEnd, so that they share a file."""
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._waiting.append(event)
        else:
            waiting, self._waiting = self._waiting, []
            self._handle(trainer, *waiting, event)

    def _handle(self, trainer: Trainer, *events: Event) -> None:
        if self._stops(*events):
            trainer.should_stop = True


def _state(trainer: Trainer) -> dict[str, Any]:
    """Return Lightning's checkpoint and ours in one dict; the weights, in it twice, are written once."""
    dumped: dict[str, Any] = plain(trainer._checkpoint_connector.dump_checkpoint(weights_only=False))
    assert isinstance(trainer.lightning_module, nn.Module)
    return {**dumped, "model_state_dict": dumped["state_dict"], "rng_state": rng_state()}
