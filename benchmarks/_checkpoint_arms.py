"""The state that `benchmarks.checkpoint_cost` saves, and each way to save it."""

import io
import itertools
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from benchmarks._harness import rolling
from peakpoint.base import digests
from peakpoint.checkpointing.events import StepEnd
from peakpoint.checkpointing.manager import Manager
from peakpoint.checkpointing.state import packing, serialize
from peakpoint.checkpointing.storage import listing, store
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.store import Store
from peakpoint.models import create
from peakpoint.optimizers.parameters import param_groups
from peakpoint.optimizers.pruning.pruner import Pruner
from peakpoint.optimizers.pruning.settings import PruneSettings


@dataclass
class Subject:
    """What is saved: the state of a network and of its optimizer."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device

    @cached_property
    def state(self) -> dict[str, Any]:
        """Return the state to save, which shares the memory of both."""
        return {
            "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }


def subject(sparsity: float, device: torch.device) -> Subject:
    """Return ResNet-50 with AdamW, pruned to `sparsity`, in channels_last as the trainer has it."""
    torch.manual_seed(0)
    options = {"stem": "auto", "dropout": 0.0}
    model = create("resnet50", image_shape=(3, 32, 32), num_classes=100, options=options)
    model.to(device, memory_format=torch.channels_last)
    settings = PruneSettings(
        criterion="bitter7",
        target=sparsity,
        start_step=0,
        end_step=2,
        frequency=1,
        schedule="linear",
        allocation="global",
    )
    optimizer = torch.optim.AdamW(param_groups(model, 5e-4), fused=True)
    Pruner(optimizer, settings)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) * 1e-3
        optimizer.step()
    model.zero_grad()
    return Subject(model, optimizer, device)


def small(device: torch.device) -> Subject:
    """Return a network of 110 weights, for what an arm does the first time only."""
    model = torch.nn.Linear(10, 10, device=device)
    return Subject(model, torch.optim.AdamW(model.parameters()), device)


@dataclass(frozen=True)
class Cost:
    """Seconds: until the training thread went on, until the state could change again, until all was done."""

    thread: float
    stall: float
    total: float


Arm = Callable[[Path], Cost]
"""Saves into a folder that is new."""


class Clock:
    """Seconds since it was made. On CUDA what was given to the device before is not counted."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.free()
        self._start = time.perf_counter()

    def now(self) -> float:
        """Return the seconds so far."""
        return time.perf_counter() - self._start

    def free(self) -> None:
        """Return once the training stream has nothing left to do."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()


def whole(of: Subject, save: Callable[[Path], Any]) -> Arm:
    """Return an arm in which training waits for the whole save."""

    def arm(folder: Path) -> Cost:
        clock = Clock(of.device)
        save(folder)
        clock.free()
        seconds = clock.now()
        return Cost(seconds, seconds, seconds)

    return arm


def tensors(state: Any) -> list[Tensor]:
    """Return every tensor of a nested state."""
    found: list[Tensor] = []
    packing.apply(state, found.append)
    return found


def plain_copy(of: Subject) -> Arm:
    """Return an arm that copies to host memory: the least that a snapshot takes."""
    return whole(of, lambda _: [t.to("cpu", copy=True) for t in tensors(of.state)])


def pinned_copy(of: Subject) -> Arm:
    """Return an arm that copies into ready pinned memory, not waiting between tensors: the limit on CUDA."""
    pairs = [(torch.empty_like(t, device="cpu", pin_memory=True), t) for t in tensors(of.state)]
    return whole(of, lambda _: [buffer.copy_(t, non_blocking=True) for buffer, t in pairs])


def synced(of: Subject, write: Callable[[IO[bytes]], object]) -> Arm:
    """Return an arm that writes one file, durable but for the directory."""

    def save(folder: Path) -> None:
        with (folder / "x.pt").open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())

    return whole(of, save)


def raw_fsync(of: Subject) -> Arm:
    """Return an arm that writes the bytes of torch.save's file at once and syncs: the limit of the disk."""
    raw = _bytes(of)
    return synced(of, lambda file: file.write(raw))


def pack(of: Subject) -> Arm:
    """Return an arm that packs, as `compress=true` does before it writes."""
    state = serialize.snapshot(of.state)
    return whole(of, lambda _: packing.pack(state))


def unpack(of: Subject) -> Arm:
    """Return an arm that unpacks, as loading does after it has read."""
    packed = packing.pack(serialize.snapshot(of.state))
    return whole(of, lambda _: packing.unpack(packed, 1 << 40))


def blake3(of: Subject) -> Arm:
    """Return an arm that digests the same bytes in memory."""
    raw = _bytes(of)
    return whole(of, lambda _: digests.of_bytes(raw, digests.BLAKE3))


def verify(of: Subject) -> Arm:
    """Return an arm that verifies a checkpoint."""
    return _read(of, lambda root, manifest: store.verify(root, manifest))


def read_sha256(of: Subject) -> Arm:
    """Return an arm that takes the SHA-256 of the same file."""
    return _read(of, lambda root, manifest: digests.digest_of(root / manifest.file, digests.SHA256))


def _read(of: Subject, read: Callable[[Path, Manifest], object]) -> Arm:
    """Return an arm that reads a checkpoint that was written before."""
    place = tempfile.TemporaryDirectory(dir=Path.cwd())
    root = Path(place.name)
    ours = Ours(of, compress=False)
    ours(root)
    (manifest,) = listing.manifests(root)
    return whole(of, lambda _: (place, read(root, manifest)))  # the folder lasts as long as the arm


def _bytes(of: Subject) -> memoryview:
    dense = io.BytesIO()
    torch.save(of.state, dense)
    return dense.getbuffer()


class Ours:
    """The checkpoint manager as the trainer has it, with background writing; one for all its saves."""

    def __init__(self, of: Subject, *, compress: bool) -> None:
        self._of, self._compress = of, compress
        self._steps = itertools.count(1)
        self._manager: Manager | None = None

    def __call__(self, folder: Path) -> Cost:
        target = Store(folder, "benchmark")
        if self._manager is None:
            self._manager = rolling(target, lambda: self._of.state, background=True, compress=self._compress)
        self._manager.store = target  # each save into its own folder, as the others
        clock = Clock(self._of.device)
        self._manager.handle(StepEnd(1, next(self._steps)))
        thread = clock.now()
        clock.free()
        stall = clock.now()
        self._manager.drain()
        total = clock.now()
        assert len(listing.manifests(folder)) == 1
        return Cost(thread, stall, total)


def safetensors(of: Subject) -> Arm:
    """Return an arm of safetensors, whose contiguous tensors are made beforehand."""
    from safetensors.torch import save_file

    flat = {str(i): t.contiguous() for i, t in enumerate(tensors(of.state))}
    return whole(of, lambda folder: save_file(flat, folder / "x.safetensors"))


def dcp_save(of: Subject) -> Arm:
    """Return an arm of torch.distributed.checkpoint in one process; its writer syncs each file."""
    import torch.distributed.checkpoint as dcp

    return whole(of, lambda folder: dcp.save(of.state, checkpoint_id=folder / "dcp", no_dist=True))


def dcp_async(of: Subject) -> Arm:
    """Return the same with a thread that writes; on CUDA with its pinned staging, on a thread too."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    cuda = of.device.type == "cuda"
    stager = DefaultStager(
        StagingOptions(
            use_pinned_memory=cuda,
            use_shared_memory=False,
            use_async_staging=cuda,
            use_non_blocking_copy=cuda,
        )
    )

    def arm(folder: Path) -> Cost:
        clock = Clock(of.device)
        saving = dcp.async_save(of.state, checkpoint_id=folder / "dcp", no_dist=True, async_stager=stager)
        thread = clock.now()
        if hasattr(saving, "staging_completion"):
            saving.staging_completion.result()  # until then the state must not change
        clock.free()
        stall = clock.now()
        getattr(saving, "upload_completion", saving).result()
        return Cost(thread, stall, clock.now())

    return arm


def lightning(of: Subject) -> Arm:
    """Return an arm of Lightning's ModelCheckpoint in a Trainer.fit: the seconds of its hook after a step."""
    from peakpoint.models._torchvision import torchvision

    torchvision()  # torchmetrics imports it
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    of.optimizer.step = lambda **_: None  # type: ignore[method-assign, assignment, misc]
    taken: list[float] = []

    class Timed(ModelCheckpoint):  # type: ignore[misc]
        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            clock = Clock(of.device)
            super().on_train_batch_end(*args, **kwargs)
            clock.free()
            taken.append(clock.now())

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = of.model
            self.automatic_optimization = False

        def training_step(self, *_: Any) -> None:
            self.optimizers().step()  # so that Lightning counts one

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return of.optimizer

    def arm(folder: Path) -> Cost:
        saving = Timed(folder, every_n_train_steps=1, save_top_k=-1)
        trainer = pl.Trainer(
            max_steps=1,
            accelerator="gpu" if of.device.type == "cuda" else "cpu",
            devices=1,
            callbacks=[saving],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(), torch.utils.data.DataLoader([0]))
        assert len(list(folder.glob("*.ckpt"))) == 1
        seconds = taken.pop()
        return Cost(seconds, seconds, seconds)

    return arm


VERIFY, SHA = "verify", "SHA-256 of a file"
RAW, COPY, PINNED, DIGEST = "raw write + fsync", "plain host copy", "pinned copy", "BLAKE3 in memory"
PACK, UNPACK = "pack in memory", "unpack in memory"
OURS, PACKED = "ours", "ours, compressed"
DURABLE = ("torch.save + fsync", "DCP save", "DCP async_save")
"""Peers that have the disk take what they wrote."""

PEERS: dict[str, Callable[[Subject], Arm]] = {
    "torch.save": lambda of: whole(of, lambda folder: torch.save(of.state, folder / "x.pt")),
    "torch.save + fsync": lambda of: synced(of, lambda file: torch.save(of.state, file)),
    "safetensors": safetensors,
    "DCP save": dcp_save,
    "DCP async_save": dcp_async,
    "Lightning ModelCheckpoint": lightning,
}
"""What others do, by name. One that is not installed raises ImportError when it is made."""

ARMS: dict[str, Callable[[Subject], Arm]] = {
    "nothing": lambda of: whole(of, lambda _: None),
    COPY: plain_copy,
    PINNED: pinned_copy,
    DIGEST: blake3,
    VERIFY: verify,
    SHA: read_sha256,
    PACK: pack,
    UNPACK: unpack,
    RAW: raw_fsync,
    OURS: lambda of: Ours(of, compress=False),
    PACKED: lambda of: Ours(of, compress=True),
    **PEERS,
}
"""Every arm, by name; `nothing` is the control of the measure itself."""

warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # of DCP, at each save
