"""A callback for the transformers Trainer: the policies decide, the store keeps, the Trainer resumes.

best = Best(metrics={"eval_loss": Metric(mode="min", min_delta=0.0)}, keep=3)
rolling = Interval(epochs=None, steps=500, keep_last=2)
callback = PeakpointCallback("checkpoints", {"best": best, "rolling": rolling})
trainer = Trainer(model, TrainingArguments(save_strategy="no", ...), callbacks=[callback], ...)
trainer.train(resume_from_checkpoint=callback.resume_folder())
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peakpoint.adapters.common import Adapter, newest, numbers, plain
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.checkpointing.events import EpochEnd, Event, RunEnd, StepEnd
from peakpoint.checkpointing.state import objects, serialize
from peakpoint.checkpointing.state.rng import rng_state

__all__ = ["PeakpointCallback", "newest"]

RESUME = ".resume"


class PeakpointCallback(Adapter, TrainerCallback):
    """Saves what `policies` ask for, under `root`; their Stop ends the training.

    Metrics have the Trainer's names, such as eval_loss. on_error is `warn` or `stop`; compress packs zeros
    away, exactly. For training in one process: raises CheckpointError otherwise.
    """

    _resumed: tuple[str | None, Mapping[str, Any] | None] = None, None
    _parts: tuple[Any, Any, Any, TrainerState] | None = None

    def resume_folder(self) -> str | None:
        """Unfold the newest checkpoint that verifies as the Trainer reads it; returns its folder or None.

        It also gives the policies' counters back. The folder is removed at the end of the training.
        """
        file = newest(self.root)
        if file is None:
            return None
        saved = serialize.load(file)
        folder = self.root / RESUME
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _unfold(saved, folder)
            self._resumed = (f"{file.parent.name}/{file.name}", saved["policies"])
        except OSError as error:
            raise CheckpointError(f"{folder} cannot be written: {os_reason(error)}.") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CheckpointError(f"{file} was not saved by this callback: give another directory.") from None
        return str(folder)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Open the directory before anything is trained."""
        if args.world_size > 1:
            raise CheckpointError("PeakpointCallback saves a training of one process.")
        self._remember(state, parts)
        (resumed, counters), self._resumed = self._resumed, (None, None)
        manager = self._open(self._state, resumed)
        if counters is not None:
            manager.load_state_dict(counters)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Publish StepEnd after each optimizer step; it waits for an evaluation or EpochEnd that follows."""
        self._remember(state, parts)
        self._waiting = [StepEnd(_epoch(state), state.global_step)]
        if not control.should_evaluate and not _ends_epoch(state):
            self._flush(control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Publish EpochEnd; it waits for an evaluation that follows, so that the two share a file."""
        self._remember(state, parts)
        self._waiting.append(EpochEnd(_epoch(state), state.global_step))
        if not control.should_evaluate:
            self._flush(control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Publish EvalEnd, with the metrics that are numbers."""
        if self._manager is None:  # evaluate() without a training
            return
        self._remember(state, parts)
        metrics = numbers(parts["metrics"])
        evaluated = self._zeros.measured(_epoch(state), state.global_step, metrics, parts["model"])
        if _ends_epoch(state) and self._waiting and isinstance(self._waiting[-1], StepEnd):
            self._waiting.append(evaluated)  # the end of the epoch is still to come
        else:
            self._flush(control, evaluated)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> None:
        """Save the last state unless it is saved, and finish the save in flight."""
        self._remember(state, parts)
        self._flush(control)
        self._handle(control, RunEnd(_epoch(state), state.global_step, "the training is over"))
        self.close()
        shutil.rmtree(self.root / RESUME, ignore_errors=True)

    def _remember(self, state: TrainerState, parts: dict[str, Any]) -> None:
        self._parts = (parts["model"], parts["optimizer"], parts["lr_scheduler"], state)

    def _flush(self, control: TrainerControl, *evaluated: Event) -> None:
        """Handle what waits as one moment: a step, its evaluation, the end of its epoch."""
        waiting, self._waiting = self._waiting, []
        steps = [event for event in waiting if isinstance(event, StepEnd)]
        events = [*steps, *evaluated, *(event for event in waiting if event not in steps)]
        if events:
            self._handle(control, *events)

    def _handle(self, control: TrainerControl, *events: Event) -> None:
        if self._stops(*events):
            control.should_training_stop = True

    def _state(self) -> dict[str, Any]:
        assert self._parts is not None
        model, optimizer, scheduler, state = self._parts
        return {
            "model_state_dict": objects.weights(model),
            "optimizer_state_dict": plain(optimizer.state_dict()),
            "scheduler_state_dict": plain(scheduler.state_dict()),
            "epoch": state.epoch,
            "global_step": state.global_step,
            "trainer_state": plain(asdict(state)),
            "rng_state": rng_state(),
        }


def _ends_epoch(state: TrainerState) -> bool:
    """Return whether the last step ended an epoch or the training: an EpochEnd follows."""
    return float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps


def _epoch(state: TrainerState) -> int:
    """Return the epoch under way or just ended, from 1: what the Trainer shows, rounded up."""
    return max(1, math.ceil((state.epoch or 0.0) - 1e-9))


def _unfold(saved: Mapping[str, Any], folder: Path) -> None:
    """Write the files that the Trainer's own checkpoints have."""
    folder.mkdir(parents=True)
    torch.save(saved["model_state_dict"], folder / "pytorch_model.bin")
    torch.save(saved["optimizer_state_dict"], folder / "optimizer.pt")
    torch.save(saved["scheduler_state_dict"], folder / "scheduler.pt")
    rng, generator = saved["rng_state"], saved["rng_state"]["numpy"]
    key = generator["key"].numpy().astype(np.uint32)
    numpy_state = (generator["bit_generator"], key, generator["pos"])
    unfolded = {
        "python": rng["python"],
        "numpy": (*numpy_state, generator["has_gauss"], generator["gauss"]),
        "cpu": rng["torch"],
    }
    if torch.cuda.is_available() and rng["cuda"]:
        unfolded["cuda"] = rng["cuda"][0]
    torch.save(unfolded, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text(json.dumps(saved["trainer_state"]))
