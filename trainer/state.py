"""The state of a run as parts, which a checkpoint saves under their names and restores in order."""

import logging
import math
import operator
import platform
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from peakpoint.base.errors import UserError, restoring
from peakpoint.checkpointing.state import objects, optimizer_state, serialize, witness
from peakpoint.checkpointing.state.rng import restore_rng, rng_state
from peakpoint.optimizers.pruning.pruner import Pruner

log = logging.getLogger("peakpoint")


@dataclass(slots=True)
class Progress:
    """Progress of a run: completed epochs, batches done in the next epoch, optimizer steps in all.

    `evaluated` holds the steps that were evaluated, as ranges of first, last and stride, so that a checkpoint
    does not grow with its run; metrics.jsonl has the metrics. `skipped` counts the steps whose loss or
    gradients were not finite, and `skipped_in_a_row` the latest of them without a step in between.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    evaluated: list[list[int]] = field(default_factory=list)
    skipped: int = 0
    skipped_in_a_row: int = 0

    @property
    def number(self) -> int:
        """Return the number of the epoch under way, between epochs that of the last one."""
        return self.epoch + (self.batch > 0)

    @property
    def evaluated_steps(self) -> set[int]:
        """Return the steps that were evaluated."""
        return {step for first, last, stride in self.evaluated for step in range(first, last + 1, stride)}

    def note_evaluation(self, step: int) -> None:
        """Add a step, later than those before, to those that were evaluated.

        Ends of epochs and evaluations within them are two rhythms, so either of the last two ranges grows.
        """
        latest = self.evaluated[-2:]
        going_on = [ranges for ranges in latest if step == ranges[1] + ranges[2] and ranges[0] != ranges[1]]
        for ranges in going_on or [each for each in latest if each[0] == each[1]]:
            ranges[1:] = [step, step - ranges[1]]
            return
        self.evaluated.append([step, step, 1])

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as plain types."""
        return asdict(self)

    @restoring("progress")
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load a saved progress; earlier versions saved every evaluation whole.

        Raises CheckpointError for a state of another form.
        """
        values = dict(saved)
        evaluations = values.pop("evaluations", [])
        self.evaluated = [[*map(operator.index, ranges)] for ranges in values.pop("evaluated", [])]
        for name, value in values.items():
            setattr(self, name, operator.index(value))
        for evaluation in evaluations:
            self.note_evaluation(evaluation["step"])


_BATCHES = 16
"""Batches whose predictions are compared with their labels at once: one by one it shows in a short step."""


class Meter:
    """The mean training loss, and the share of correct predictions, since the last `take`."""

    def __init__(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0
        self._correct: Tensor | int = 0
        self._images = 0
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor | float) -> None:
        """Add one loss: a scalar on the device, which is not waited for, or a number."""
        self._sum = self._sum + loss
        self._count += 1

    def predicted(self, logits: Tensor, labels: Tensor) -> None:
        """Add predictions: logits (batch, classes) and labels (batch,) on the device, not waited for."""
        self._waiting.append((logits.detach(), labels))
        if len(self._waiting) == _BATCHES:
            self._compare()

    def _compare(self) -> None:
        if self._waiting:
            logits, labels = map(torch.cat, zip(*self._waiting, strict=True))
            # A third of the time that argmax takes on the CPU; a tie is no correct prediction.
            own = logits.gather(1, labels[:, None])
            others = logits.scatter(1, labels[:, None], -math.inf).amax(1, keepdim=True)
            self._correct = self._correct + (own > others).sum()
            self._images += len(labels)
            self._waiting = []

    def finite(self) -> bool:
        """Return whether every loss since the last `take` was finite. Waits for the device."""
        return math.isfinite(float(self._sum))

    def take(self) -> tuple[float, float]:
        """Return mean loss and accuracy, NaN of nothing; starts anew. Waits for the device."""
        self._compare()
        loss = float(self._sum) / self._count if self._count else math.nan
        accuracy = int(self._correct) / self._images if self._images else math.nan
        self._sum, self._count, self._correct, self._images = 0.0, 0, 0, 0
        return loss, accuracy

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts."""
        self._compare()
        return {
            "sum": float(self._sum),
            "count": self._count,
            "correct": int(self._correct),
            "images": self._images,
        }

    @restoring("train_loss")
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load saved sums and counts, those of predictions absent from earlier versions.

        Raises CheckpointError for a state of another form.
        """
        self._sum, self._count = float(state["sum"]), operator.index(state["count"])
        self._correct = operator.index(state.get("correct", 0))
        self._images = operator.index(state.get("images", 0))
        self._waiting = []


@dataclass(frozen=True)
class Part:
    """A part of the state as two functions: one returns its memory, the other restores it."""

    state_dict: Callable[[], dict[str, Any]]
    load_state_dict: Callable[[Mapping[str, Any]], object]


def _load_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load an optimizer's state with the settings of the configuration, and log what begins anew.

    Raises CheckpointError when it does not fit.
    """
    with restoring("optimizer_state_dict"):
        for line in optimizer_state.load(optimizer, saved, keep_settings=True):
            log.warning("%s", line)


class Schedules:
    """The learning rate as a part; it and the pruning ramp are set to `step()`, the steps of the run.

    The saved counters are not used for that: earlier versions did not count skipped steps, and a dense
    training has none for pruning.
    """

    def __init__(self, scheduler: LambdaLR, pruner: Pruner | None, step: Callable[[], int]) -> None:
        self._scheduler, self._pruner, self._step = scheduler, pruner, step

    def state_dict(self) -> dict[str, Any]:
        """Return the state of torch's scheduler."""
        return self._scheduler.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load it. Raises CheckpointError for one that no such schedule saved."""
        scheduler = self._scheduler
        base_lrs = list(scheduler.base_lrs)
        optimizer_state.load_schedule(scheduler, saved)
        scheduler.base_lrs = base_lrs
        scheduler.last_epoch = self._step()
        groups = scheduler.optimizer.param_groups
        for group, lr, factor in zip(groups, base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = lr * factor(scheduler.last_epoch)
        if self._pruner:
            self._pruner.step = self._step()


@dataclass
class TrainState:
    """The objects that a checkpoint describes, and facts that are saved with them.

    `parts` has every object with memory under its key in a checkpoint, in the order of restoring: another
    network, optimizer or average is one more entry. `arithmetic` has the facts that, beside the
    configuration, decide the last bit of a result.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    pruner: Pruner | None
    progress: Progress
    meter: Meter
    config: dict[str, Any]
    metadata: dict[str, Any]
    arithmetic: dict[str, Any]
    parts: dict[str, objects.Stateful] = field(init=False)

    def __post_init__(self) -> None:
        self.parts = {
            "model_state_dict": Part(
                lambda: objects.weights(self.model), partial(objects.load_weights, self.model)
            ),
            "optimizer_state_dict": Part(self.optimizer.state_dict, partial(_load_optimizer, self.optimizer)),
            "progress": self.progress,
            "scheduler_state_dict": Schedules(self.scheduler, self.pruner, lambda: self.progress.step),
            "train_loss": self.meter,
            "rng_state": Part(rng_state, restore_rng),  # the last: nothing draws before the first batch
        }

    def gather(self) -> dict[str, Any]:
        """Return the state under the keys of a checkpoint, not copied."""
        return {
            **{name: part.state_dict() for name, part in self.parts.items()},
            "optimizer": optimizer_state.kind(self.optimizer),
            "epoch": self.progress.epoch,
            "global_step": self.progress.step,
            "config": self.config,
            "metadata": {**self.metadata, **self.arithmetic},
        }

    def digest(self) -> str:
        """Return the digest of the weights, buffers and masks, equal for equal bits on any device."""
        masks = self.pruner.masks if self.pruner else []
        named = ((f"mask.{number}", mask) for number, mask in enumerate(masks))
        return witness.digest_of((*objects.weights(self.model).items(), *named))

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the objects; settings stay those of the configuration.

        State that the settings begin anew or no longer need is logged. Raises UserError or CheckpointError
        naming a part that is missing or does not fit.
        """
        need(saved, self.parts)
        with restoring("optimizer_state_dict"):  # before any object is changed
            optimizer_state.check_kind(self.optimizer, saved["optimizer_state_dict"], saved.get("optimizer"))
        for name, part in self.parts.items():
            part.load_state_dict(saved[name])


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Load a checkpoint of the trainer. Raises UserError for any other."""
    saved = serialize.load(file)
    need(saved, ("progress", "policies", "metadata"))
    return saved


def need(saved: Mapping[str, Any], entries: Iterable[str]) -> None:
    """Raise UserError unless a checkpoint has these entries, each a dict."""
    for name in entries:
        if name not in saved:
            raise UserError(f"The checkpoint has no {name}: it cannot be resumed from. Name another one.")
        if not isinstance(saved[name], Mapping):
            kind = type(saved[name]).__name__
            raise UserError(
                f"The checkpoint's {name} is of type {kind}: it cannot be resumed from. Name another one."
            )


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def arithmetic(device: torch.device) -> dict[str, Any]:
    """Return device, torch version and threads, which decide the last bit of a result."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "pytorch_version": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }
