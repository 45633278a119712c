"""The training loop."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peakpoint.base.errors import UserError
from peakpoint.checkpointing.events import EpochEnd, EvalEnd, Event, Interrupted, RunEnd, StepEnd
from peakpoint.checkpointing.policy import Stop
from peakpoint.checkpointing.state.objects import unwrap
from peakpoint.optimizers.clipping import GradientNorm
from peakpoint.optimizers.parameters import Zeros, zeros
from peakpoint.optimizers.pruning.criterion import ScoreError
from peakpoint.optimizers.scope import Scope
from peakpoint.trainer import signals
from peakpoint.trainer.data.pipeline import DataModule
from peakpoint.trainer.evaluation import (
    Classification,
    autocast_for,
    check_logits,
    evaluate,
    explaining_torch,
)
from peakpoint.trainer.listeners.events import Logged, Publisher
from peakpoint.trainer.nonfinite import REMEDY, DivergedError, Skipping, check_alive
from peakpoint.trainer.state import TrainState


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how to train; max_steps None means as long as `epochs` takes.

    `eval_every_steps` is the period of evaluations within an epoch, None for none.
    """

    epochs: int
    max_steps: int | None
    grad_accumulation: int
    label_smoothing: float
    bf16: bool
    skip_nonfinite: bool
    max_skipped: int
    log_every: int
    eval_every_steps: int | None


class Loop:
    """One run's training: `fit` trains to the end, `evaluate` measures."""

    def __init__(
        self,
        state: TrainState,
        data: DataModule,
        settings: LoopSettings,
        *,
        device: torch.device,
        scope: Scope,
        gradient_norm: GradientNorm,
        mask_version: Callable[[], int],
        skipped: Callable[[], None],
    ) -> None:
        self.state, self.data, self.settings = state, data, settings
        self.device = device
        self._scope = scope
        self.gradient_norm = gradient_norm
        self.mask_version = mask_version
        self.skipped = skipped
        self.signal: int | None = None
        self._autocast = autocast_for(device, bf16=settings.bf16)
        self._skipping: Skipping | None = None
        if settings.skip_nonfinite:
            self._skipping = Skipping(state.model, state.optimizer, state.progress, settings.max_skipped)

    def fit(self, publish: Publisher) -> RunEnd | Interrupted:
        """Train until the last epoch, the last step, a policy's Stop or a signal."""
        progress, settings = self.state.progress, self.settings
        reason = "all epochs are done"
        while not self.done:
            epoch = progress.epoch + 1
            last = self._train_epoch(epoch, publish)
            ended = self._evaluate_at(epoch, last, publish) if isinstance(last, list) else last
            if isinstance(ended, Interrupted):
                return ended
            if ended:
                reason = ended.reason
                break
        else:
            if progress.epoch < settings.epochs:
                reason = f"max_steps={settings.max_steps} is reached"
        if progress.skipped:
            reason += f"; {progress.skipped} of {progress.step} steps were skipped, as they were not finite"
        end = RunEnd(progress.number, progress.step, reason)
        publish(end)
        return end

    def _evaluate_at(self, epoch: int, taken: list[Event], publish: Publisher) -> Stop | Interrupted | None:
        """Evaluate on the validation split and publish it with `taken`, the step just taken.

        Returns a policy's Stop, or Interrupted, published, when a signal came. An evaluation changes no
        weights: published apart from its step, the same state would be saved twice.
        """
        progress = self.state.progress
        try:
            metrics = {} if self.signal is not None else self.evaluate(self.data.val_batches())
            if math.isfinite(metrics.get("loss", math.nan)):  # else check_alive follows the evaluation
                check_alive(self.state.model, progress.step)
        except BaseException:
            publish(*taken)
            raise
        if self.signal is not None:
            cut = Interrupted(epoch, progress.step, self.signal)
            publish(*taken, cut)
            return cut
        stop = publish(*taken, *self._evaluated(epoch, metrics))
        self._check_alive(metrics)
        return stop

    @explaining_torch()
    def _train_epoch(self, epoch: int, publish: Publisher) -> list[Event] | Stop | Interrupted:
        """Train one epoch; returns the StepEnd of its last step, to be published with the evaluation.

        Returns what ended the run instead, when an evaluation within the epoch did.
        """
        progress, meter = self.state.progress, self.state.meter
        log_every, per_epoch = self.settings.log_every, self.data.steps_per_epoch
        # Once an epoch, not once a step: in a step of half a millisecond it shows.
        limit = math.inf if self.settings.max_steps is None else self.settings.max_steps
        eval_every = self.settings.eval_every_steps
        since, first = time.perf_counter(), progress.step
        last: list[Event] = []
        self.state.model.train()
        for images, labels in self.data.train_batches(epoch, progress.batch):
            logged = (progress.step + 1) % log_every == 0 or progress.batch + 1 == per_epoch
            self.gradient_norm.wanted = logged
            self._step(images, labels)
            progress.batch += 1
            progress.step += 1
            if logged:
                self._check_finite(f"by step {progress.step}")
                (loss, accuracy), norm, now = meter.take(), self.gradient_norm.take(), time.perf_counter()
                rate = (progress.step - first) * self.data.batch_size / (now - since)
                since, first = now, progress.step
                lr = self.state.optimizer.param_groups[0]["lr"]
                publish.notify(Logged(epoch, progress.step, loss, lr, rate, progress.skipped, accuracy, norm))
            if progress.step >= limit or progress.batch == per_epoch:
                last = [StepEnd(epoch, progress.step)]
                break
            if eval_every and progress.step % eval_every == 0:
                paused = time.perf_counter()
                if end := self._evaluate_at(epoch, [StepEnd(epoch, progress.step)], publish):
                    return end
                self.state.model.train()
                since += time.perf_counter() - paused  # the rate is that of training
            else:
                publish(StepEnd(epoch, progress.step))
            if self.signal is not None:
                break
        self._check_finite(f"by step {progress.step}")
        return last

    def _step(self, images: Tensor, labels: Tensor) -> None:
        """Take one optimizer step. On CUDA nothing here waits for the device unless steps may be skipped."""
        state, parts = self.state, self.settings.grad_accumulation
        if self._skipping:
            self._skipping.remember()
        total: Tensor | None = None
        predicted: list[tuple[Tensor, Tensor]] = []
        # One part is neither cut nor divided, for the same reason.
        whole = [(images, labels)]
        pieces = whole if parts == 1 else zip(images.chunk(parts), labels.chunk(parts), strict=True)
        for x, y in pieces:
            with self._autocast:
                logits = state.model(x)
            check_logits(logits, len(x), self.data.num_classes)
            loss = cross_entropy(logits.float(), y, label_smoothing=self.settings.label_smoothing)
            if parts > 1:
                loss = loss / parts
            loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
            predicted.append((logits, y))
        assert total is not None
        if self._usable(total):
            for logits, y in predicted:
                state.meter.predicted(logits, y)
            try:
                state.optimizer.step()
                state.scheduler.step()
            except ScoreError as error:
                raise UserError(str(error)) from error
        else:
            self.skipped()
        state.optimizer.zero_grad()

    def _usable(self, loss: Tensor) -> bool:
        """Add a loss to the mean; returns False for a step to skip.

        Raises DivergedError for a loss that is not finite: at once on the CPU, at the next check on CUDA.
        """
        meter = self.state.meter
        if self._skipping:
            usable = self._skipping.usable(loss)
            if usable:
                meter.add(loss.item())
            else:
                self._skipping.skip(loss.item())
            return usable
        if self.device.type != "cpu":
            meter.add(loss)
            return True
        meter.add(loss.item())
        self._check_finite(f"at step {self.state.progress.step + 1}")
        return True

    def _check_finite(self, when: str) -> None:
        """Raise DivergedError if a loss since the last check was not finite. Waits for the device."""
        if not self.state.meter.finite():
            raise DivergedError(f"The loss is not finite {when}: {REMEDY}, or nonfinite=skip.")

    def _check_alive(self, metrics: dict[str, float]) -> None:
        """Raise DivergedError when the evaluation shows a network that no later step repairs."""
        if math.isfinite(metrics["loss"]):
            return
        check_alive(self.state.model, self.state.progress.step)
        whole_epoch = self.state.progress.skipped_in_a_row >= self.data.steps_per_epoch
        if self._skipping and whole_epoch:
            raise self._skipping.over()

    @explaining_torch()
    def evaluate(
        self, batches: Iterator[tuple[Tensor, Tensor]], into: Classification | None = None
    ) -> dict[str, float]:
        """Return the metrics over `batches`, counted in `into`; empty when a signal cuts it short."""
        return evaluate(
            self.state.model,
            batches,
            into or Classification(self.data.num_classes, self.device),
            autocast=self._autocast,
            cut_short=lambda: self.signal is not None,
        )

    def _evaluated(self, epoch: int, metrics: dict[str, float]) -> list[Event]:
        """Record the evaluation; returns its event, and EpochEnd if all batches were used."""
        progress, found = self.state.progress, self.zeros()
        version = self.mask_version()
        digests = {"weights": self.state.digest(), "batches": self.data.seen()}
        layers = found.layers if found.prunable else None
        measured = EvalEnd(
            epoch, progress.step, metrics, found.prunable, version, found.overall, digests, layers
        )
        progress.note_evaluation(progress.step)
        if progress.batch < self.data.steps_per_epoch:
            return [measured]
        progress.epoch, progress.batch = epoch, 0
        return [measured, EpochEnd(epoch, progress.step)]

    def zeros(self) -> Zeros:
        """Count the zeros of the network."""
        return zeros(unwrap(self.state.model), self._scope)

    @property
    def done(self) -> bool:
        """Return whether the last epoch or the last step has been reached."""
        progress, limit = self.state.progress, self.settings.max_steps
        return progress.epoch >= self.settings.epochs or (limit is not None and progress.step >= limit)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Have a signal end the run after the current step; a second Ctrl-C ends it at once."""

        def note(number: int, _frame: FrameType | None) -> None:
            if self.signal is not None and number == signal.SIGINT:
                raise signals.Ended(number)
            self.signal = self.signal or number

        with signals.handled(note):
            signals.check()
            yield
