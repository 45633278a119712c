"""What the loop costs: ours and that of Lightning's Trainer, against a bare PyTorch loop.

    python -m benchmarks.loop_overhead [--repeats 20] [--model mlp] [--checkpoint-every 50] [--json FILE]

Every arm gets the same network, batches, fused AdamW and schedule, built by trainer.build from the default
configuration, and must end with the same weights. Ours is Loop.fit with all that a run has: publisher,
checkpoint manager, default policies, metrics.jsonl, TensorBoard, console. Every arm reads the loss each 50
steps. Within one long epoch the arms take turns, in random order, so that a busy machine slows all of them;
each ratio is to the bare loop's turn of the same round, and the second bare arm shows what the machine alone
does. Building, and what follows the epoch (ours evaluates and saves there), are not timed.

With --checkpoint-every the bare loop calls torch.save, without fsync, Lightning uses its ModelCheckpoint, and
ours saves as in a run but for one thing: each turn ends when its saves are on disk, which a run does not wait
for.
"""

import argparse
import json
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Semaphore
from typing import Any

import hydra
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks._machine import machine, summary
from checkpointing.manager import Manager, Options
from checkpointing.store import Store
from checkpointing.terminal import Console
from models._torchvision import torchvision
from trainer import plugins
from trainer.build import Parts, build
from trainer.check import checked, register_schemas
from trainer.config import Config
from trainer.data import DataModule
from trainer.events import Listener, Publisher
from trainer.listeners import ConsoleHandler, ConsoleListener, JsonLines, TensorBoard

CONF = Path(__file__).resolve().parent.parent / "conf"
LOG_EVERY = 50
BARE, AGAIN, OURS, LIGHTNING = "bare", "bare, again", "peakpoint", "lightning"
Arm = Callable[["Trial"], None]
VALIDATION = 100  # images; the training part is then exactly one epoch of the batches that are needed


@dataclass(kw_only=True)
class MLP:
    """A network whose step takes about half a millisecond, so that overhead shows."""

    name: str = "mlp"
    hidden: int = 64


def mlp(cfg: MLP, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """One hidden layer over all pixels."""
    pixels = image_shape[0] * image_shape[1] * image_shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, cfg.hidden), nn.ReLU(), nn.Linear(cfg.hidden, num_classes)
    )


class Turns:
    """An epoch's batches, handed out in turns of so many steps; notes what each turn took, in seconds."""

    def __init__(self, data: DataModule, steps: int) -> None:
        self._batches, self._length, self._steps = data.train_batches, data.steps_per_epoch, steps
        self._go, self._done = Semaphore(0), Semaphore(0)
        self.seconds: list[float] = []
        self.over = False
        self.settle: Callable[[], None] = lambda: None  # an arm's work in the background ends within its turn

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._batches(1)
        for _ in range(self._length // self._steps):
            begin = time.perf_counter()
            for _ in range(self._steps):
                yield next(batches)
            self.settle()
            self.seconds.append(time.perf_counter() - begin)
            self._done.release()
            self._go.acquire()
        yield from batches  # one: the last turn ends, like the others, when the batch after it is asked for

    def run(self, arm: Callable[[], None]) -> None:
        """On a thread of its own: train, one turn at a time."""
        self._go.acquire()
        try:
            arm()
        finally:
            self.over = True
            self._done.release()

    def take(self) -> None:
        """Let the arm have its next turn, and wait for its end."""
        if not self.over:
            self._go.release()
            self._done.acquire()


@dataclass(frozen=True)
class Trial:
    """What an arm trains; `every` is the number of steps between checkpoints, 0 for none."""

    config: Config
    parts: Parts
    batches: Turns
    folder: Path
    every: int


def bare(trial: Trial) -> None:
    """The loop that one would write by hand."""
    state = trial.parts.state
    model, optimizer, scheduler = state.model, state.optimizer, state.scheduler
    model.train()
    for step, (images, labels) in enumerate(trial.batches, 1):
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % LOG_EVERY == 0:
            loss.item()
        if trial.every and step % trial.every == 0:
            parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
            torch.save({name: part.state_dict() for name, part in parts.items()}, trial.folder / "bare.pt")


def ours(trial: Trial) -> None:
    """Loop.fit among the parts that trainer.run puts round it."""
    config, parts = trial.config, trial.parts
    options = Options(
        background=config.checkpoint.background,
        on_error=config.checkpoint.on_error,
        git_commit=None,
        resumed_from=None,
    )
    store = Store(trial.folder / "checkpoints", "benchmark")
    parts.data.train_batches = lambda *_: iter(trial.batches)  # type: ignore[method-assign]
    with (
        closing(JsonLines(trial.folder, 0, set())) as lines,
        closing(TensorBoard(trial.folder, 0)) as tensorboard,
        closing(ConsoleListener(_console(), total_steps=parts.total_steps, start_step=0)) as console,
        closing(Manager(store, parts.policies, parts.state.gather, options=options)) as manager,
    ):
        trial.batches.settle = manager.drain
        listeners: list[Listener] = [lines, tensorboard, console]
        parts.loop.fit(Publisher(listeners, manager))


def lightning_arm(self_log_every: int) -> Arm:
    """Lightning's Trainer with everything optional off; the loss is logged every so many steps."""
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
            loss = cross_entropy(self.net(images), labels)
            if (index + 1) % self_log_every == 0:
                self.log("loss", loss)
            return loss

        def configure_optimizers(self):  # type: ignore[no-untyped-def]
            state = self.parts.state
            return {
                "optimizer": state.optimizer,
                "lr_scheduler": {"scheduler": state.scheduler, "interval": "step"},
            }

    def run(trial: Trial) -> None:
        saving: list[Any] = (
            [ModelCheckpoint(trial.folder, every_n_train_steps=trial.every)] if trial.every else []
        )
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
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


def compose(options: argparse.Namespace) -> tuple[Config, dict[str, Any]]:
    """The default configuration with one epoch of small grey images, typed and as plain values."""
    images = options.batch_size * (options.steps * (options.repeats + 1) + 1) + VALIDATION
    overrides = [
        f"model={options.model}",
        "data=synthetic",
        f"data.train_size={images}",
        f"data.val_fraction={VALIDATION / images}",
        "data.channels=1",
        "data.native_size=28",
        "data.crop_padding=0",
        "optimizer=adamw",
        "epochs=1",
        f"batch_size={options.batch_size}",
        "device=cpu",
        f"threads={options.threads}",
        f"log_every={LOG_EVERY}",
        f"checkpoint.interval_steps={options.checkpoint_every or 'null'}",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("config", overrides)
    plain: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return checked(cfg), plain


def measure(arms: dict[str, Arm], options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds a step of each arm in each turn, the first left out. Exits when an arm did other work."""
    config, resolved = compose(options)
    order, shuffled = list(arms), random.Random(0)
    trials: dict[str, Trial] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(arms)) as pool:
        for name in arms:
            parts = build(config, resolved)
            place = Path(folder, name)
            place.mkdir()
            turns = Turns(parts.data, options.steps)
            trials[name] = Trial(config, parts, turns, place, options.checkpoint_every)
        running = [pool.submit(t.batches.run, partial(arms[name], t)) for name, t in trials.items()]
        while not all(trial.batches.over for trial in trials.values()):
            shuffled.shuffle(order)
            for name in order:
                trials[name].batches.take()
        for training in running:
            training.result()
    weights = {name: list(trial.parts.state.model.parameters()) for name, trial in trials.items()}
    for name in arms:
        if not all(map(torch.equal, weights[name], weights[BARE])):
            raise SystemExit(f"error: {name} ended with other weights than {BARE}: it did other work.")
    return {name: [1e3 * s / options.steps for s in t.batches.seconds[1:]] for name, t in trials.items()}


def report(times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Print a line an arm; returns the same figures."""
    figures: dict[str, dict[str, Any]] = {}
    print(f"{'':<14}{'ms a step':>10}{'steps/s':>9}   to bare: {'median':>7}{'min':>7}{'max':>7}")
    for name, values in times.items():
        ratios = [value / base for value, base in zip(values, times[BARE], strict=True)]
        step, ratio = summary(values), summary(ratios)
        print(
            f"{name:<14}{step.median:>10.3f}{1e3 / step.median:>9.0f}"
            f"{ratio.median:>20.3f}{ratio.min:>7.3f}{ratio.max:>7.3f}"
        )
        figures[name] = {"ms_per_step": values, "ratios": ratios, "median_ratio": ratio.median}
    return figures


def main() -> None:
    """Measure, print a table, and write the figures as JSON when asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mlp", help="mlp, lenet5, resnet20, ...")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20, help="turns of each arm, after one to warm up")
    parser.add_argument("--steps", type=int, default=50, help="steps in a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint-every", type=int, default=0, metavar="STEPS", help="0: none is timed")
    parser.add_argument("--self-log", action="store_true", help="Lightning: self.log the loss at every step")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    for period in (LOG_EVERY, options.checkpoint_every or 1):
        if options.steps % period:
            parser.error(
                f"--steps={options.steps} must be a multiple of {period}: all turns are to be alike."
            )
    quieten()
    register_schemas()
    plugins.add_model("mlp", MLP(), mlp)
    arms: dict[str, Arm] = {BARE: bare, AGAIN: bare, OURS: ours}
    if find_spec("lightning"):
        arms[LIGHTNING] = lightning_arm(1 if options.self_log else LOG_EVERY)
    else:
        print("lightning is not installed, so that arm is left out: pip install -e '.[bench]'")
    times = measure(arms, options)
    where = machine() + (f", lightning {version('lightning')}" if LIGHTNING in arms else "")
    print(where)
    print(f"{options.model}, batch {options.batch_size}, {options.steps} steps a turn, n={options.repeats}")
    figures = report(times)
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        text = json.dumps({"machine": where, "settings": settings, "arms": figures}, indent=2)
        options.json.write_text(text + "\n", encoding="utf-8")


def quieten() -> None:
    """Send our log to a console that is no terminal and goes nowhere."""
    log = logging.getLogger("peakpoint")
    log.setLevel(logging.DEBUG)
    log.addHandler(ConsoleHandler(_console()))
    log.propagate = False


if __name__ == "__main__":
    main()
