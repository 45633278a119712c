"""Golden inputs and outputs of a release, which reveal other code, arithmetic or weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from peakpoint.base.bounded import read_bytes
from peakpoint.base.disk_space import check_memory
from peakpoint.base.errors import CheckpointError, first_line
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.deployment.inference import network as networks
from peakpoint.deployment.inference.network import Description

COUNT = 8
LARGEST = 1 << 30
"""Bytes of a golden file."""
TOLERANCE = 1e-3
"""Largest error, as a fraction of the largest golden output: above that of TF32, below a wrong layer."""

_SEED = 20240229


@dataclass(frozen=True)
class Agreement:
    """The largest error of outputs against the golden ones, and the inputs of `count` with another class.

    A class that changes between two outputs closer than the tolerance is not counted.
    """

    largest: float
    allowed: float
    flipped: int
    count: int

    @property
    def sound(self) -> bool:
        """Whether the outputs agree."""
        return self.largest <= self.allowed and self.flipped == 0


def folder(version: str) -> str:
    """Return the golden file of a version, relative to the checkpoint root."""
    return f"metadata/golden/v{version}.safetensors"


def inputs(description: Description, count: int = COUNT) -> Tensor:
    """Return images (count, H, W, C) uint8, the same on every machine: noise and coarse noise by turns."""
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
    """Return the outputs (N, classes) float32, on the CPU, of a network in evaluation mode.

    Raises CheckpointError unless they are a finite number for each class.
    """
    device = next(network.parameters()).device
    fed = networks.prepare(images.to(device), description)
    try:
        found = network(fed)
    except RuntimeError as error:
        check_memory(error, fed.nbytes)
        raise CheckpointError(
            f"The network cannot be run on images of {tuple(fed.shape)}: {first_line(error)}"
        ) from None
    wanted = (len(images), len(description.classes))
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise CheckpointError(f"The network's output is {shape}, and {wanted} is one value for each class.")
    found = found.to("cpu", torch.float32)
    if not bool(found.isfinite().all()):
        raise CheckpointError("The network's output is NaN or infinite: this state is not released.")
    return found


def golden_file(network: nn.Module, description: Description, count: int) -> bytes:
    """Return the golden file of a network in evaluation mode, of `count` images. Raises CheckpointError."""
    images = inputs(description, count)
    logits = outputs(network, description, images)
    written: bytes = save({"inputs": images, "outputs": logits.clone().contiguous()})
    return written


def read(root: Path, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Return the golden inputs (N, H, W, C) uint8 and outputs (N, classes) float32 of a verified release.

    Raises CheckpointError when it has none, or those of a network that does not take images.
    """
    found = content(root, manifest)
    try:
        return found["inputs"], found["outputs"]
    except KeyError as error:
        raise CheckpointError(
            f"{manifest.file} has golden outputs of no images: {error} is missing."
        ) from None


def content(root: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Return the tensors of a verified release's golden file. Raises CheckpointError when it has none."""
    path = root / folder(manifest.tags[0].removeprefix("v"))
    if not has(manifest):
        raise CheckpointError(f"{manifest.file} was released without golden outputs.")
    try:
        found: dict[str, Tensor] = load(read_bytes(path, LARGEST))
        return found
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None


def has(manifest: Manifest) -> bool:
    """Return whether a release was written with golden outputs."""
    digests = manifest.companions or {}
    return bool(manifest.tags) and folder(manifest.tags[0].removeprefix("v")) in digests


def compare(found: Tensor, golden: Tensor, tolerance: float = TOLERANCE) -> Agreement:
    """Compare outputs (N, classes) with golden ones of the same shape; NaN is infinitely far."""
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
    """Run a network on golden inputs. Raises CheckpointError when its outputs disagree."""
    images, expected = golden
    agreement = compare(outputs(network, description, images), expected, tolerance)
    if not agreement.sound:
        raise CheckpointError(
            "The network is not the one that was released: a golden output is off by "
            f"{agreement.largest:.3g} ({agreement.allowed:.3g} is allowed), and {agreement.flipped} of "
            f"{agreement.count} inputs get another class."
        )
    return agreement
