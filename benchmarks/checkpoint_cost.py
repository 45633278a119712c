"""What a checkpoint costs: time, bytes, the stall that training sees, and memory, beside what others write.

    python -m benchmarks.checkpoint_cost [--sparsity 0 0.7 0.9] [--repeats 7] [--folder DIR]

The state is that of ResNet-50 with 100 classes and AdamW after some pruned steps. Every arm saves the same
state under a new name; the arms take turns in random order within each repeat. `raw + fsync` writes the bytes
of torch.save's file in one go and fsyncs: the physical limit for the dense form. Ours is durable (file and
directory fsynced, manifest committed) and digested; the others offer what their name says. `stall` is what
training waits for: the whole save when it is synchronous. Arms whose package is missing are left out with a
line.
"""

import argparse
import hashlib
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._machine import machine, summary
from checkpointing import codec, sparse
from checkpointing.manifest import Manifest
from checkpointing.store import Store
from models import create
from optimizers import AdamWPrune, PruneSettings, param_groups


@dataclass
class Subject:
    """The state to save, and the network and optimizer that it is of."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    state: dict[str, Any]


def subject(sparsity: float) -> Subject:
    """ResNet-50 with AdamW, pruned to `sparsity`, in channels_last as the trainer has it."""
    torch.manual_seed(0)
    options = {"stem": "auto", "dropout": 0.0}
    model = create("resnet50", image_shape=(3, 32, 32), num_classes=100, options=options)
    model.to(memory_format=torch.channels_last)
    settings = PruneSettings(
        criterion="bitter7",
        target=sparsity,
        start_step=0,
        end_step=2,
        frequency=1,
        schedule="linear",
        allocation="global",
    )
    optimizer = AdamWPrune(
        param_groups(model, 5e-4), settings=settings, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, amsgrad=False
    )
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        optimizer.step()
    state = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    return Subject(model, optimizer, state)


Arm = Callable[[Path], float]
"""Saves into a new folder and returns the seconds that training waited."""


def arms(of: Subject) -> dict[str, Arm]:
    """The arms by name."""
    state = of.state
    dense = io.BytesIO()
    torch.save(state, dense)
    raw = dense.getvalue()

    def whole(save: Callable[[Path], Any]) -> Arm:
        def arm(folder: Path) -> float:
            start = time.perf_counter()
            save(folder)
            return time.perf_counter() - start

        return arm

    def raw_fsync(folder: Path) -> None:
        with (folder / "raw").open("wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())

    def torch_save_fsync(folder: Path) -> None:
        with (folder / "x.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    made: dict[str, Arm] = {
        "raw + fsync": whole(raw_fsync),
        "sha256 in memory": whole(lambda _: hashlib.sha256(raw)),
        "plain host copy": whole(lambda _: [t.clone() for t in tensors(state)]),
        "ours": ours(state, compress=False),
        "ours, compressed": ours(state, compress=True),
        "torch.save": whole(lambda folder: torch.save(state, folder / "x.pt")),
        "torch.save + fsync": whole(torch_save_fsync),
    }
    return made | peers(of, whole)


def ours(state: dict[str, Any], *, compress: bool) -> Arm:
    """The snapshot is what training waits for; the rest would be on the writer's thread."""

    def arm(folder: Path) -> float:
        target = Store(folder, "benchmark")
        start = time.perf_counter()
        copied = codec.snapshot(state)
        stall = time.perf_counter() - start
        target.save(
            Manifest(
                file="training/x.pt",
                tier="training",
                tags=(),
                policies=(),
                reasons=(),
                sequence=0,
                run="benchmark",
                epoch=1,
                global_step=1,
            ),
            lambda file: codec.dump(copied, file, compress=compress),
        )
        return stall

    return arm


def peers(of: Subject, whole: Callable[[Callable[[Path], Any]], Arm]) -> dict[str, Arm]:
    """What other libraries do with the same state."""
    import torch.distributed.checkpoint as dcp

    made: dict[str, Arm] = {
        "DCP save": whole(lambda folder: dcp.save(of.state, checkpoint_id=folder / "dcp", no_dist=True))
    }
    try:
        from safetensors.torch import save_file
    except ImportError:
        print("safetensors is not installed: left out")
    else:
        flat = {str(i): t.contiguous() for i, t in enumerate(tensors(of.state))}
        made["safetensors"] = whole(lambda folder: save_file(flat, folder / "x.safetensors"))
    try:
        from models._torchvision import torchvision

        torchvision()  # Lightning imports it through torchmetrics
        import lightning.pytorch as pl
    except ImportError:
        print("lightning is not installed: left out")
    else:
        made["Lightning save_checkpoint"] = whole(lightning_save(pl, of))
    return made


def lightning_save(pl: Any, of: Subject) -> Callable[[Path], Any]:
    """What Lightning's ModelCheckpoint calls for each file."""

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = of.model

        def training_step(self, *_: Any) -> Tensor:
            return self.model(torch.zeros(2, 3, 32, 32)).sum() * 0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return of.optimizer

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(max_steps=0, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(Module(), torch.utils.data.DataLoader([0]))
    return lambda folder: trainer.save_checkpoint(folder / "x.ckpt")


def tensors(state: Any) -> list[Tensor]:
    """Every tensor of a nested state."""
    found: list[Tensor] = []
    sparse.apply(state, found.append)
    return found


def written(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def measure(of: Subject, repeats: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Seconds, stall and bytes of each arm over `repeats`, in turns; one turn before does not count."""
    made = arms(of)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    stalls: dict[str, list[float]] = {name: [] for name in made}
    size = {}
    for repeat in range(repeats + 1):
        for name in random.sample(list(made), len(made)):
            os.sync()
            with tempfile.TemporaryDirectory(dir=folder) as place:
                start = time.perf_counter()
                stall = made[name](Path(place))
                total = time.perf_counter() - start
                size[name] = written(Path(place))
            if repeat:
                seconds[name].append(total)
                stalls[name].append(stall)
    return {name: {"seconds": seconds[name], "stall": stalls[name], "bytes": size[name]} for name in made}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.7, 0.9])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where to write: the disk to measure")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for sparsity in options.sparsity:
        of = subject(sparsity)
        results[sparsity] = measure(of, options.repeats, options.folder)
    if options.json:
        print(json.dumps({"machine": machine(), "results": results}, indent=2))
        return
    print(f"{machine()}, n={options.repeats}, medians; total and stall in s, x: of raw + fsync")
    for sparsity, by_arm in results.items():
        limit = summary(by_arm["raw + fsync"]["seconds"]).median
        print(f"\nsparsity {sparsity:.0%}")
        print(f"{'':28}{'total':>8}{'x':>7}{'min-max':>16}{'stall':>8}{'MB':>8}")
        for name, result in by_arm.items():
            total, stall = summary(result["seconds"]), summary(result["stall"])
            span = f"{total.min:.3f}-{total.max:.3f}"
            print(
                f"{name:28}{total.median:8.3f}{total.median / limit:7.2f}{span:>16}"
                f"{stall.median:8.3f}{result['bytes'] / 1e6:8.1f}"
            )


if __name__ == "__main__":
    main()
