"""What has memory in a run, each as a part that a checkpoint saves under its name."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from peakpoint.base.errors import UserError, restoring
from peakpoint.checkpointing.state import objects, optimizer_state, schedule_state
from peakpoint.checkpointing.state.rng import restore_rng, rng_state
from peakpoint.optimizers.pruning.pruner import Pruner

log = logging.getLogger("peakpoint")


class Stateful(Protocol):
    """Anything with memory; its state is of tensors and plain types."""

    def state_dict(self) -> dict[str, Any]:
        """The memory."""
        ...

    def load_state_dict(self, saved: Mapping[str, Any], /) -> None:
        """Take it back. Raises UserError or CheckpointError for what does not fit."""
        ...


class Weights:
    """A network as a part: its keys are canonical."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        """The weights and buffers, not copied."""
        return dict(objects.weights(self._model))

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load them. Raises UserError with the first difference when they are of another network."""
        try:
            objects.unwrap(self._model).load_state_dict(saved)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            raise UserError(f"The checkpoint is of another network: {(lines[1:] or lines)[0]}") from None


class OptimizerState:
    """An optimizer as a part: its settings stay those of the configuration."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """The state with masks and counters, not copied."""
        return self._optimizer.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load it, and log what begins anew. Raises CheckpointError when it does not fit."""
        with restoring("optimizer_state_dict"):
            for line in optimizer_state.load(self._optimizer, saved, keep_settings=True):
                log.warning("%s", line)


class Schedules:
    """The learning rate as a part; it and the ramp of pruning follow `step()`, the steps of the run.

    Earlier versions left out the steps that were skipped, and a dense training has no steps of pruning.
    """

    def __init__(self, scheduler: LambdaLR, pruner: Pruner | None, step: Callable[[], int]) -> None:
        self._scheduler, self._pruner, self._step = scheduler, pruner, step

    def state_dict(self) -> dict[str, Any]:
        """The state of torch's scheduler."""
        return self._scheduler.state_dict()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Load it. Raises CheckpointError for one that no such schedule saved."""
        scheduler = self._scheduler
        base_lrs = list(scheduler.base_lrs)
        schedule_state.load(scheduler, saved)
        scheduler.base_lrs = base_lrs
        scheduler.last_epoch = self._step()
        groups = scheduler.optimizer.param_groups
        for group, lr, factor in zip(groups, base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = lr * factor(scheduler.last_epoch)
        if self._pruner:
            self._pruner.step = self._step()


class Generators:
    """The random number generators as a part: the last, so that nothing draws before the first batch."""

    def state_dict(self) -> dict[str, Any]:
        """The state of each."""
        return rng_state()

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Set each."""
        restore_rng(saved)
