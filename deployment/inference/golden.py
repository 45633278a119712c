"""Golden inputs and outputs of a release, which reveal other code, arithmetic or weights.

The inputs are images, or the user's example for a network that does not take images.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
"""Largest error, as a fraction of the largest golden output: above that of TF32, below a wrong layer.
Outputs that are integers must be equal."""

INPUT, OUTPUT = "example", "output"
"""Prefixes of the tensors of a network that does not take images, whose inputs are the user's example."""

_SEED = 20240229


@dataclass(frozen=True)
class Agreement:
    """The largest error against golden outputs, the error `allowed`, and the inputs with `flipped` classes.

    A class that changes between two outputs closer than the tolerance is not counted.
    """

    largest: float
    allowed: float
    flipped: int
    count: int

    @property
    def sound(self) -> bool:
        """Return whether the outputs agree."""
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
        raise CheckpointError(
            f"The network's output has shape {shape} instead of {wanted}, one value for each class."
        )
    found = found.to("cpu", torch.float32)
    if not bool(found.isfinite().all()):
        raise CheckpointError("The network's output is NaN or infinite: choose another checkpoint.")
    return found


def of_images(network: nn.Module, description: Description, count: int) -> bytes:
    """Return the golden file of a network in evaluation mode, of `count` images. Raises CheckpointError."""
    images = inputs(description, count)
    return _saved({"inputs": images, "outputs": outputs(network, description, images)})


def _saved(tensors: Mapping[str, Tensor]) -> bytes:
    written: bytes = save({name: value.contiguous().clone() for name, value in tensors.items()})
    return written


def read(root: Path, manifest: Manifest) -> tuple[Tensor, Tensor]:
    """Return the golden inputs (N, H, W, C) uint8 and outputs (N, classes) float32 of a verified release.

    Raises CheckpointError when it has none, or those of a network that does not take images.
    """
    content = _content(root, manifest)
    try:
        return content["inputs"], content["outputs"]
    except KeyError as error:
        raise CheckpointError(
            f"{manifest.file} has golden outputs for an example, not for images: {error} is missing."
        ) from None


def _content(root: Path, manifest: Manifest) -> dict[str, Tensor]:
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
        raise CheckpointError(
            f"The outputs have shape {tuple(found.shape)}, the golden ones {tuple(golden.shape)}."
        )
    allowed = tolerance * float(golden.abs().max())
    distance = (found.to("cpu", torch.float32) - golden).abs().nan_to_num(nan=torch.inf)
    best = golden.max(dim=1)
    chosen = golden.gather(1, found.to("cpu").argmax(dim=1, keepdim=True)).squeeze(1)
    flipped = int((best.values - chosen > 2 * allowed).sum())
    return Agreement(float(distance.max()), allowed, flipped, len(golden))


def verify(root: Path, manifest: Manifest) -> None:
    """Run the network of a verified release on its golden inputs.

    Raises CheckpointError when it has none or the outputs disagree, UnregisteredError as `network.load`.
    """
    content = _content(root, manifest)
    network = networks.load(root, manifest)
    given = {name: value for name, value in content.items() if name.split(".")[0] == INPUT}
    if not given:
        check(network, networks.described(manifest.config or {}), read(root, manifest))
        return
    expected = {name: value for name, value in content.items() if name.split(".")[0] == OUTPUT}
    if (wrong := _difference(_run(network, given), expected)) is not None:
        raise CheckpointError(f"The network is not the one that was released: {wrong}.")


def check(network: nn.Module, description: Description, golden: tuple[Tensor, Tensor]) -> Agreement:
    """Run a network on golden inputs. Raises CheckpointError when its outputs disagree."""
    images, expected = golden
    agreement = compare(outputs(network, description, images), expected)
    if not agreement.sound:
        raise CheckpointError(
            "The network is not the one that was released: a golden output is off by "
            f"{agreement.largest:.3g} ({agreement.allowed:.3g} is allowed), and {agreement.flipped} of "
            f"{agreement.count} inputs get another class."
        )
    return agreement


def of_example(network: nn.Module, example: Any) -> bytes:
    """Return the golden file of a network for its user's example inputs; its mode and generators are kept.

    A tensor is its one argument, a tuple or a list its arguments in order, a mapping its arguments by name.
    Raises CheckpointError for inputs that it does not accept, and for outputs that are not tensors, not
    finite or different at every call.
    """
    given = _given(example)
    with _evaluating(network):
        first, second = _run(network, given), _run(network, given)
    for name, value in first.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"For example_inputs the network's {name} is NaN or infinite: give others, or leave them out."
            )
    if (wrong := _difference(second, first)) is not None:
        raise CheckpointError(
            f"In evaluation mode the network's outputs differ from call to call ({wrong}): leave "
            "example_inputs out, as nothing can be compared with them."
        )
    return _saved(given | first)


@torch.no_grad()
def _run(network: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor of the output on the CPU, by its path in the output. Raises CheckpointError."""
    first = next(iter(network.parameters()), None)
    device = first.device if first is not None else torch.device("cpu")
    moved = {name.removeprefix(INPUT).removeprefix("."): value.to(device) for name, value in given.items()}
    by_name = {name: value for name, value in moved.items() if name and not name.isdigit()}
    in_order = [moved[name] for name in sorted(moved.keys() - by_name, key=lambda name: int(name or 0))]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(0)  # for a network that draws even in evaluation mode
            output = network(*in_order, **by_name)
    except Exception as error:  # the network is the user's: it may raise anything
        raise CheckpointError(
            f"The network cannot be run on its example inputs: {first_line(error)}"
        ) from None
    found = {name: value.detach().to("cpu") for name, value in _tensors(output, OUTPUT)}
    if not found:
        raise CheckpointError(f"The network's output, a {type(output).__name__}, holds no tensor to compare.")
    return found


def _given(example: Any) -> dict[str, Tensor]:
    """Return the arguments of a network by their place or name."""
    if isinstance(example, Mapping):
        if not all(isinstance(name, str) and name.isidentifier() for name in example):
            raise CheckpointError(
                "example_inputs: the names of a mapping are those of the network's arguments."
            )
        found = {f"{INPUT}.{name}": value for name, value in example.items()}
    elif isinstance(example, list | tuple):
        found = {f"{INPUT}.{number}": value for number, value in enumerate(example)}
    else:
        found = {INPUT: example}
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            "example_inputs must be what the network is called with: a tensor, a tuple of tensors, or a "
            "mapping of its arguments' names to tensors."
        )
    return {name: value.detach().to("cpu") for name, value in found.items()}


def _tensors(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, child in pairs:
            yield from _tensors(child, f"{place}.{key}")


def _difference(found: Mapping[str, Tensor], golden: Mapping[str, Tensor]) -> str | None:
    """Return a sentence on the first output that differs from the golden one, or None."""
    for name in [*golden, *(found.keys() - golden.keys())]:
        if name not in found or name not in golden or found[name].shape != golden[name].shape:
            return f"{name} is {_shape(found, name)}, and was {_shape(golden, name)}"
        expected = golden[name]
        allowed = 0.0
        if expected.is_floating_point() and expected.numel():
            allowed = max(TOLERANCE, 8 * torch.finfo(expected.dtype).eps) * float(expected.abs().max())
        distance = (found[name].to(torch.float64) - expected.to(torch.float64)).abs()
        largest = float(distance.nan_to_num(nan=torch.inf).max()) if distance.numel() else 0.0
        if not largest <= allowed:
            return f"{name} is off by {largest:.3g}, and {allowed:.3g} is allowed"
    return None


def _shape(outputs: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(outputs[name].shape)) if name in outputs else "missing"


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and afterwards back to the mode of each module."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
