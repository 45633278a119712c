"""The arms of the benchmarks of the loop: one training as a bare loop, as ours, and as Lightning's."""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from peakpoint.base.files import CONF
from peakpoint.base.registry import register
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import Event
from peakpoint.checkpointing.manager import Manager, Options
from peakpoint.checkpointing.policies.interval import Interval
from peakpoint.checkpointing.policy import Decision
from peakpoint.checkpointing.storage.store import Store
from peakpoint.models import Model
from peakpoint.models._torchvision import torchvision
from peakpoint.trainer.build import Parts
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.config.choices import register_schemas
from peakpoint.trainer.config.schema import Config, Precision
from peakpoint.trainer.data.pipeline import DataModule
from peakpoint.trainer.evaluation import autocast_for
from peakpoint.trainer.listeners.console import ConsoleHandler, ConsoleListener, LogLines
from peakpoint.trainer.listeners.events import Listener, Publisher
from peakpoint.trainer.listeners.jsonl import JsonLines
from peakpoint.trainer.listeners.tensorboard import TensorBoard

LOG_EVERY = 50
BARE, AGAIN, OURS, LIGHTNING = "bare", "bare, again", "peakpoint", "lightning"
Arm = Callable[["Trial"], None]
VALIDATION = 100  # images; the training part is then exactly one epoch of the batches that are needed


@register("model", "mlp")
@dataclass(kw_only=True)
class MLP(Model):
    """A network whose step takes about half a millisecond, so that overhead shows."""

    hidden: int = 64

    def build(self, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
        """Return one hidden layer over all pixels."""
        pixels = image_shape[0] * image_shape[1] * image_shape[2]
        return nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, self.hidden), nn.ReLU(), nn.Linear(self.hidden, num_classes)
        )


class Batches:
    """An epoch's batches, which a subclass times in `__iter__`.

    `settle` ends an arm's work in the background.
    """

    def __init__(self, data: DataModule) -> None:
        self._batches, self._length = data.train_batches, data.steps_per_epoch
        self.settle: Callable[[], None] = lambda: None
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotImplementedError


@dataclass(frozen=True)
class Trial:
    """What an arm trains; it saves each `every` steps up to step `last`, never for 0."""

    config: Config
    parts: Parts
    batches: Batches
    folder: Path
    every: int
    last: float = math.inf

    @property
    def bf16(self) -> bool:
        """Return whether the network computes in bfloat16."""
        return self.config.precision is Precision.bf16

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is saved after a step."""
        return bool(self.every) and step % self.every == 0 and step <= self.last


def bare(trial: Trial) -> None:
    """Train in a loop written by hand."""
    state = trial.parts.state
    model, optimizer, scheduler = state.model, state.optimizer, state.scheduler
    autocast = autocast_for(torch.device("cpu"), bf16=trial.bf16)
    model.train()
    for step, (images, labels) in enumerate(trial.batches, 1):
        with autocast:
            logits = model(images)
        loss = cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            loss.item()
        if trial.saves(step):
            parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
            torch.save({name: part.state_dict() for name, part in parts.items()}, trial.folder / "bare.pt")


def ours(trial: Trial) -> None:
    """Train with Loop.fit among the parts that peakpoint.trainer.run puts round it."""
    config, parts = trial.config, trial.parts
    options = Options(
        background=config.checkpoint.background,
        on_error=config.checkpoint.on_error.value,
        git_commit=None,
        resumed_from=None,
    )
    store = Store(trial.folder / "checkpoints", "benchmark")
    interval = parts.policies.get("interval")
    if isinstance(interval, Interval):
        parts.policies["interval"] = until = _Until(**asdict(interval))
        until.last = trial.last
    parts.data.train_batches = lambda *_: iter(trial.batches)  # type: ignore[method-assign]
    with (
        closing(JsonLines(trial.folder, 0, set())) as lines,
        closing(TensorBoard(trial.folder, 0, {})) as tensorboard,
        closing(ConsoleListener(_console(), total_steps=parts.total_steps, start_step=0)) as console,
        closing(Manager(store, parts.policies, parts.state.gather, options=options)) as manager,
    ):
        trial.batches.settle = manager.drain
        listeners: list[Listener] = [lines, LogLines(parts.total_steps), tensorboard, console]
        parts.loop.fit(Publisher(listeners, manager))


class _Until(Interval):
    """Saves as the run's own policy does, up to a step."""

    last = float("inf")

    def decide(self, event: Event) -> list[Decision]:
        return super().decide(event) if event.step <= self.last else []


def lightning_arm() -> Arm:
    """Return an arm of Lightning's Trainer with everything optional off."""
    torchvision()  # torchmetrics imports it, and only so does that work beside a CPU build of torch
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(lightning.LightningModule):
        def __init__(self, parts: Parts) -> None:
            super().__init__()
            self.net, self.parts = parts.state.model, parts

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            images, labels = batch
            loss = cross_entropy(self.net(images).float(), labels)
            if (index + 1) % LOG_EVERY == 0:
                self.log("loss", loss)
            return loss

        def configure_optimizers(self):  # type: ignore[no-untyped-def]
            state = self.parts.state
            return {
                "optimizer": state.optimizer,
                "lr_scheduler": {"scheduler": state.scheduler, "interval": "step"},
            }

    class Until(ModelCheckpoint):
        last: float = math.inf

        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step <= self.last:
                super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def run(trial: Trial) -> None:
        saving: list[Any] = [Until(trial.folder, every_n_train_steps=trial.every)] if trial.every else []
        for callback in saving:
            callback.last = trial.last
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            precision="bf16-mixed" if trial.bf16 else "32-true",
            devices=1,
            logger=False,
            callbacks=saving,
            enable_checkpointing=bool(saving),
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(trial.parts), trial.batches)

    return run


def _console() -> Console:
    return Console(file=Path(os.devnull).open("w"))


def compose(images: int, *overrides: str) -> tuple[Config, dict[str, Any]]:
    """Return the default configuration with `images` training images, typed and as plain values."""
    train_size = images + VALIDATION
    fixed = (
        "data=synthetic",
        f"data.train_size={train_size}",
        f"data.val_fraction={VALIDATION / train_size}",
        "optimizer=adamw",
        "epochs=1",
        "device=cpu",
        f"log_every={LOG_EVERY}",
    )
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", [*fixed, *overrides])
    plain: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return checked(cfg), plain


def quieten() -> None:
    """Direct our log to a console that is no terminal and discards it."""
    log = logging.getLogger("peakpoint")
    log.setLevel(logging.DEBUG)
    log.addHandler(ConsoleHandler(_console()))
    log.propagate = False
