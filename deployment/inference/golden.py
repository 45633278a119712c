"""Inputs and outputs that a release is kept with, so that whoever loads or converts it sees that it still is
the same network: other code, other arithmetic and other weights all show."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from peakpoint.base.bounded import read_bytes
from peakpoint.base.disk_space import out_of_memory
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.inference import network as networks
from peakpoint.deployment.inference.network import Description

COUNT = 8
LARGEST = 1 << 30
"""Bytes of a golden file."""
TOLERANCE = 1e-3
"""Of the largest golden output: more than another order of summing or TF32 makes, less than a wrong layer."""

_SEED = 20240229


@dataclass(frozen=True)
class Agreement:
    """How far outputs are from the golden ones, and how many of `count` inputs get another class.

    A class that changes between two outputs nearer than the tolerance is not counted.
    """

    largest: float
    allowed: float
    flipped: int
    count: int

    @property
    def sound(self) -> bool:
        """Whether they are the same network's."""
        return self.largest <= self.allowed and self.flipped == 0


def folder(version: str) -> str:
    """Where the golden file of a version lies under a checkpoint root."""
    return f"metadata/golden/v{version}.safetensors"


def inputs(description: Description, count: int = COUNT) -> Tensor:
    """Images (count, H, W, C) uint8, the same on every machine: noise, and noise in blocks, by turns."""
    channels, height, width = description.image_shape
    source = torch.Generator().manual_seed(_SEED)
    images = torch.randint(0, 256, (count, height, width, channels), generator=source, dtype=torch.uint8)
    for index in range(1, count, 2):  # of few frequencies, as photographs are
        step = 2 ** (1 + index // 2 % 3)
        coarse = images[index, ::step, ::step]
        blocks = coarse.repeat_interleave(step, 0).repeat_interleave(step, 1)
        images[index] = blocks[:height, :width]
    return images


@torch.no_grad()
def outputs(network: nn.Module, description: Description, images: Tensor) -> Tensor:
    """What the network, in evaluation mode, makes of images: (N, classes) float32 on the CPU.

    Raises CheckpointError when that is no finite number for each class.
    """
    device = next(network.parameters()).device
    fed = networks.prepare(images.to(device), description)
    try:
        found = network(fed)
    except RuntimeError as error:
        if out_of_memory(error, fed.nbytes) is not None:
            raise
        first = str(error).splitlines()[0]
        raise CheckpointError(f"The network cannot be run on images of {tuple(fed.shape)}: {first}") from None
    wanted = (len(images), len(description.classes))
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise CheckpointError(f"The network's output is {shape}, and {wanted} is one value for each class.")
    found = found.to("cpu", torch.float32)
    if not bool(found.isfinite().all()):
        raise CheckpointError("The network's output is NaN or infinite: this state is not released.")
    return found


def as_bytes(images: Tensor, logits: Tensor) -> bytes:
    """The golden file."""
    written: bytes = save({"inputs": images.contiguous(), "outputs": logits.clone().contiguous()})
    return written


def read(root: Path, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """The golden inputs (N, H, W, C) uint8 and outputs (N, classes) float32 of a verified release.

    Raises CheckpointError when it has none, or those of another kind of network.
    """
    found = content(root, manifest)
    try:
        return found["inputs"], found["outputs"]
    except KeyError as error:
        raise CheckpointError(
            f"{manifest.file} has golden outputs of no images: {error} is missing."
        ) from None


def content(root: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Every tensor of a verified release's golden file. Raises CheckpointError when it has none."""
    path = root / folder(manifest.tags[0].removeprefix("v"))
    if not has(manifest):
        raise CheckpointError(f"{manifest.file} was released without golden outputs.")
    try:
        found: dict[str, Tensor] = load(read_bytes(path, LARGEST))
        return found
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None


def has(manifest: Manifest) -> bool:
    """Whether a release was written with golden outputs."""
    digests = (manifest.metadata or {}).get("digests") or {}
    return bool(manifest.tags) and folder(manifest.tags[0].removeprefix("v")) in digests


def compare(found: Tensor, golden: Tensor, tolerance: float = TOLERANCE) -> Agreement:
    """How far outputs (N, classes) are from golden ones of the same shape, NaN being infinitely far."""
    if found.shape != golden.shape:
        raise CheckpointError(f"The outputs are {tuple(found.shape)}, and the golden {tuple(golden.shape)}.")
    allowed = tolerance * float(golden.abs().max())
    distance = (found.to("cpu", torch.float32) - golden).abs().nan_to_num(nan=torch.inf)
    best = golden.max(dim=1)
    chosen = golden.gather(1, found.to("cpu").argmax(dim=1, keepdim=True)).squeeze(1)
    flipped = int((best.values - chosen > 2 * allowed).sum())
    return Agreement(float(distance.max()), allowed, flipped, len(golden))


def check(
    network: nn.Module,
    description: Description,
    golden: tuple[Tensor, Tensor],
    tolerance: float = TOLERANCE,
) -> Agreement:
    """Run a network on golden inputs. Raises CheckpointError when its outputs are others."""
    images, expected = golden
    agreement = compare(outputs(network, description, images), expected, tolerance)
    if not agreement.sound:
        raise CheckpointError(
            f"The network is not the one that was released: of its golden outputs one is off by "
            f"{agreement.largest:.3g} ({agreement.allowed:.3g} is allowed), and {agreement.flipped} of "
            f"{agreement.count} inputs get another class."
        )
    return agreement
