"""Losses and gradients that are NaN or infinite: which steps are skipped, and when training ends."""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing.policy import ranked
from peakpoint.checkpointing.state import objects
from peakpoint.checkpointing.storage import listing, store
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.trainer.resume import advice
from peakpoint.trainer.state import Progress

log = logging.getLogger("peakpoint")

REMEDY = "try a lower optimizer.lr or optimizer.clip_norm=1.0"
_LOST = 10
"""Times the loss of a uniform guess; an evaluation above it is of a network that diverged."""


class DivergedError(UserError):
    """Training diverged and cannot continue."""


class Skipping:
    """Skips the steps whose loss or gradients are not finite, and counts them.

    The forward pass of such a step has changed running statistics, as those of batch normalisation, so every
    floating-point buffer is restored; integer counters keep counting. Waits for the device at each step.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, progress: Progress, limit: int) -> None:
        self._model, self._optimizer, self._progress, self._limit = model, optimizer, progress, limit
        self._statistics: dict[str, Tensor] = {}
        self._warned = False

    def remember(self) -> None:
        """Copy the statistics that the forward pass changes; called before it."""
        self._statistics = {name: buffer.clone() for name, buffer in self._floating()}

    def _floating(self) -> Iterator[tuple[str, Tensor]]:
        return ((n, buffer) for n, buffer in self._model.named_buffers() if buffer.is_floating_point())

    def usable(self, loss: Tensor) -> bool:
        """Return whether the loss and every gradient are finite."""
        params = [p for group in self._optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in params if p.grad is not None]
        largest = torch._foreach_norm(grads, torch.inf) if grads else []
        finite = bool(torch.stack([loss, *largest]).isfinite().all())
        if finite:
            self._progress.skipped_in_a_row = 0
        return finite

    @torch.no_grad()
    def skip(self, loss: float) -> None:
        """Count a skipped step and restore the statistics. Raises DivergedError after `limit` in a row."""
        for name, buffer in self._floating():
            buffer.copy_(self._statistics[name])
        progress = self._progress
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        if not self._warned:
            self._warned = True
            what = "a gradient" if math.isfinite(loss) else "its loss"
            log.warning("step %d is skipped: %s is not finite", progress.step + 1, what)
        if progress.skipped_in_a_row >= self._limit:
            raise self.over()

    def over(self) -> DivergedError:
        """Return the error that ends a run whose steps are all skipped."""
        progress = self._progress
        return DivergedError(
            f"The last {progress.skipped_in_a_row} steps were skipped, as their loss or gradients were not "
            f"finite ({progress.skipped} since the run began), so none is left to take: {REMEDY}."
        )


def check_alive(model: nn.Module, step: int) -> None:
    """Raise DivergedError for a network that no step repairs: its weights or statistics are not finite.

    Statistics that are infinite may leave the loss finite.
    """
    name = objects.nonfinite(model)
    if name is not None:
        raise DivergedError(
            f"The network has diverged: {name} holds NaN or infinite values at step {step}, which no later "
            f"step repairs: {REMEDY}."
        )


@contextlib.contextmanager
def with_last_good(root: Path, run: str, classes: int) -> Iterator[None]:
    """Add the newest good checkpoint of the run, if there is one, to a DivergedError."""
    try:
        yield
    except DivergedError as error:
        good = last_good(root, run, classes)
        if good is None:
            what = "No checkpoint of this run was evaluated with a good loss, so start again."
        else:
            loss, again = good.metrics["loss"], advice.command(root / good.file)
            what = (
                f"The last good checkpoint is that of epoch {good.epoch}, step {good.global_step} (loss "
                f"{loss:.4f}), and is intact; to go on from it: {again}"
            )
        raise UserError(f"{error} {what}") from None


def last_good(root: Path, run: str, classes: int) -> Manifest | None:
    """Return the newest checkpoint that verifies and was evaluated with the loss of a network that learns."""
    bound = _LOST * math.log(max(2, classes))
    for manifest in reversed(listing.manifests(root)):
        loss = ranked(manifest.metrics, "loss")
        if manifest.run == run and loss is not None and loss <= bound:
            try:
                store.verify(root, manifest)
            except CheckpointError:
                continue
            return manifest
    return None
