"""Networks side by side: size, accuracy on the same images, and latency.

The others are compared with the first: the original with its pruned, cast or converted forms. All figures are
measured here, in float32; none is taken from a record.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peakpoint.base.bounded import json_value
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import objects
from peakpoint.checkpointing.storage.manifest import PRODUCTION
from peakpoint.deployment.inference import evaluate, golden, network, onnx_files, timing
from peakpoint.deployment.inference.network import Description
from peakpoint.deployment.inference.timing import Call, Latency
from peakpoint.deployment.selection.intervals import Accuracy, Paired, compare_pairs
from peakpoint.deployment.selection.measure import RunData
from peakpoint.trainer.data.pipeline import DataModule


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of the networks: its name on the command line, its file, and its call on prepared images.

    `weights` are as stored in the file, `trained_with` as for `evaluate`, None for an ONNX file.
    """

    label: str
    file: Path
    kind: str
    call: Call
    description: Description
    weights: Mapping[str, Tensor]
    trained_with: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Size:
    """Bytes of the file, of its weights, and of these with zeros packed away; numbers of weights.

    `sparsity` is the fraction of zeros in the weights of convolutions and dense layers.
    """

    file_bytes: int
    weights_bytes: int
    packed_bytes: int
    parameters: int
    nonzero: int
    sparsity: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """Measurements of a network; `accuracy` is None without data, `against` also for the first network."""

    network: Network
    size: Size
    accuracy: Accuracy | None
    against: Paired | None
    latency: Mapping[int, Latency]


def open_all(paths: Sequence[Path], device: torch.device) -> list[Network]:
    """Return the networks of paths, as for `load_model`, or of ONNX files.

    Raises CheckpointError, also unless all take images of one shape and have the same classes.
    """
    found = [_onnx(p, device) if p.suffix == ".onnx" else _checkpoint(p, device) for p in paths]
    first = found[0].description
    for each in found[1:]:
        if each.description.image_shape != first.image_shape or each.description.classes != first.classes:
            raise CheckpointError(
                f"{found[0].label} and {each.label} differ in the shape of their images or in their "
                "classes: compare networks of one task."
            )
    return found


def _checkpoint(path: Path, device: torch.device) -> Network:
    root, manifest = network.resolve(path)
    weights, saved = network.contents(root, manifest)
    built, description = network.with_weights(weights, saved)
    objects.move(built, device)
    try:
        trained_with = evaluate.trained_with(root, manifest)
    except CheckpointError:  # reported when data are needed
        trained_with = None
    return Network(
        label=str(path),
        file=root / manifest.file,
        kind="release" if manifest.tier == PRODUCTION else "checkpoint",
        call=built,
        description=description,
        weights={name: weights[name] for name, _ in built.named_parameters()},
        trained_with=trained_with,
    )


def _onnx(path: Path, device: torch.device) -> Network:
    if device.type != "cpu":
        raise CheckpointError(f"{path} runs in onnxruntime on the CPU: leave --device out.")
    opened = onnx_files.opened(path, threads=torch.get_num_threads())
    if opened.batch is not None:
        raise CheckpointError(
            f"{path} takes {opened.batch} images at a time and no other number: "
            "export it with --batch dynamic."
        )
    try:
        description = network.described(json_value(opened.notes["config"]))
    except (KeyError, ValueError, TypeError):
        raise CheckpointError(
            f"{path} does not describe its inputs: write it with peakpoint export."
        ) from None
    return Network(
        label=str(path),
        file=path,
        kind="onnx",
        call=opened.run,
        description=description,
        weights=onnx_files.weights(path),
        trained_with=None,
    )


def size(network: Network) -> Size:
    """Return the size of a network."""
    values = list(network.weights.values())
    matrices = [value for value in values if value.ndim > 1]
    pruned = sum(value.numel() for value in matrices)
    zeros = pruned - sum(int(value.count_nonzero()) for value in matrices)
    return Size(
        file_bytes=network.file.stat().st_size,
        weights_bytes=sum(value.nbytes for value in values),
        packed_bytes=objects.packed_bytes(network.weights),
        parameters=sum(value.numel() for value in values),
        nonzero=sum(int(value.count_nonzero()) for value in values),
        sparsity=zeros / pruned if pruned else 0.0,
    )


def accuracies(networks: Sequence[Network], split: str, runs: RunData) -> list[list[bool]]:
    """Return whether each network is right on each image of a split, prepared as in its own run.

    An ONNX file uses the data of the first other network with its normalisation. Raises CheckpointError
    unless the images are the same and held out of every training.
    """
    data = [runs.of(_trained_with(each, networks)) for each in networks]
    for each, its in zip(networks, data, strict=True):
        evaluate.batches(its, split)  # reads the test set, if that is the split
        if split == "val" and its.fingerprint != data[0].fingerprint:
            raise CheckpointError(
                f"{networks[0].label} and {each.label} have different validation images, on which the other "
                "may have been trained: compare them on --split test."
            )
        if split == "test" and its.test_fingerprint != data[0].test_fingerprint:
            raise CheckpointError(
                f"{networks[0].label} and {each.label} differ in their test images: choose others."
            )
    return [hits(each.call, its, split) for each, its in zip(networks, data, strict=True)]


def hits(call: Call, data: DataModule, split: str) -> list[bool]:
    """Return whether a network is right on each image of a split; NaN is never right."""
    found: list[Tensor] = []
    with torch.inference_mode():
        for images, labels in evaluate.batches(data, split):
            logits = call(images)
            right = (logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)
            found.append(right.cpu())
    return [bool(hit) for hit in torch.cat(found)]


def _trained_with(network: Network, networks: Sequence[Network]) -> Mapping[str, Any]:
    if network.trained_with is not None:
        return network.trained_with
    remedy = "use --split none for the rest."
    if network.kind == "onnx":
        fed = network.description
        for other in networks:
            its = other.description
            if other.trained_with is not None and (its.mean, its.std) == (fed.mean, fed.std):
                return other.trained_with
        remedy = "compare it with a checkpoint or a release of the same run, or use --split none."
    raise CheckpointError(f"{network.label} does not record which data it was trained with: {remedy}")


def compare(
    networks: Sequence[Network],
    split: str | None,
    *,
    data_root: Path | None,
    batches: Sequence[int],
    rounds: int,
    device: torch.device,
) -> list[Row]:
    """Measure every network; `split` None leaves out the accuracy. Raises CheckpointError."""
    right = accuracies(networks, split, RunData(data_root, device)) if split else None
    timed = {}
    for batch in batches:
        images = golden.inputs(networks[0].description, batch).to(device)
        calls = [(each.call, network.prepare(images, each.description)) for each in networks]
        timed[batch] = timing.measure(calls, rounds=rounds, device=device)
    return [
        Row(
            network=each,
            size=size(each),
            accuracy=Accuracy.of(right[number]) if right else None,
            against=compare_pairs(right[0], right[number]) if right and number else None,
            latency={batch: found[number] for batch, found in timed.items()},
        )
        for number, each in enumerate(networks)
    ]
