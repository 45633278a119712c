"""Networks side by side: size, accuracy on the same images, and latency.

The others are compared with the first: the original with its pruned, cast or converted forms. All figures are
measured here, in float32; none is taken from a record.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peakpoint.base.bounded import json_value
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import objects
from peakpoint.checkpointing.storage import listing
from peakpoint.deployment.inference import evaluate, golden, network, onnx_files, timing
from peakpoint.deployment.inference import weights as forms
from peakpoint.deployment.inference.network import Description
from peakpoint.deployment.inference.timing import Call, Latency
from peakpoint.deployment.selection.intervals import Accuracy, Paired, compare_pairs

Data = Any
"""A `DataModule` of the trainer, opaque to all but evaluate.py."""

Trained = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of the networks: its name on the command line, its file, and its call on prepared images.

    `weights` are as stored in the file, `trained_with` as for `evaluate`, None for an ONNX file.
    """

    label: str
    file: Path
    kind: str
    call: Call
    description: Description
    weights: Mapping[str, Tensor]
    trained_with: Trained | None


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

    candidate: Candidate
    size: Size
    accuracy: Accuracy | None
    against: Paired | None
    latency: Mapping[int, Latency]


def open_all(paths: Sequence[Path], device: torch.device) -> list[Candidate]:
    """Return the networks of paths, as for `load_model`, or of ONNX files.

    Raises CheckpointError, also unless all take images of one shape and have the same classes.
    """
    found = [_onnx(p, device) if p.suffix == ".onnx" else _checkpoint(p, device) for p in paths]
    first = found[0].description
    for each in found[1:]:
        if each.description.image_shape != first.image_shape or each.description.classes != first.classes:
            raise CheckpointError(
                f"{found[0].label} and {each.label} take other images or have other classes: "
                "there is nothing to compare."
            )
    return found


def _checkpoint(path: Path, device: torch.device) -> Candidate:
    root, manifest = network.resolve(path)
    weights, saved = network.contents(root, manifest)
    built, description = network.with_weights(weights, saved)
    objects.move(built, device)
    try:
        trained_with = evaluate.trained_with(root, manifest)
    except CheckpointError:  # reported when data are needed
        trained_with = None
    return Candidate(
        label=str(path),
        file=root / manifest.file,
        kind="release" if manifest.tier == listing.PRODUCTION else "checkpoint",
        call=built,
        description=description,
        weights={name: weights[name] for name, _ in built.named_parameters()},
        trained_with=trained_with,
    )


def _onnx(path: Path, device: torch.device) -> Candidate:
    if device.type != "cpu":
        raise CheckpointError(f"{path} runs in onnxruntime on the CPU: leave --device out.")
    opened = onnx_files.opened(path, threads=torch.get_num_threads())
    if opened.batch is not None:
        raise CheckpointError(
            f"{path} takes {opened.batch} images at a time, no more and no less: "
            "export it with --batch dynamic."
        )
    try:
        description = network.described(json_value(opened.notes["config"]))
    except (KeyError, ValueError, TypeError):
        raise CheckpointError(f"{path} does not say how it is fed: it was not written by export.") from None
    return Candidate(
        label=str(path),
        file=path,
        kind="onnx",
        call=opened.run,
        description=description,
        weights=onnx_files.weights(path),
        trained_with=None,
    )


def size(candidate: Candidate) -> Size:
    """Return the size of a network."""
    values = list(candidate.weights.values())
    matrices = [value for value in values if value.ndim > 1]
    pruned = sum(value.numel() for value in matrices)
    zeros = pruned - sum(int(value.count_nonzero()) for value in matrices)
    return Size(
        file_bytes=candidate.file.stat().st_size,
        weights_bytes=sum(value.nbytes for value in values),
        packed_bytes=forms.packed_bytes(candidate.weights),
        parameters=sum(value.numel() for value in values),
        nonzero=sum(int(value.count_nonzero()) for value in values),
        sparsity=zeros / pruned if pruned else 0.0,
    )


class Images:
    """The data of the networks' runs, read once for all networks that share them."""

    def __init__(self, split: str, data_root: Path | None, device: torch.device) -> None:
        self.split, self._root, self._device = split, data_root, device
        self._read: dict[str, Data] = {}

    def of(self, trained_with: Trained) -> Data:
        """Return the data of a run. Raises CheckpointError."""
        config = trained_with["config"]
        key = json.dumps([config.get("data"), config.get("seed"), trained_with["fingerprint"]], default=str)
        if key not in self._read:
            self._read[key] = evaluate.data_of(trained_with, data_root=self._root, device=self._device)
            evaluate.batches(self._read[key], self.split)  # reads the test set, if that is the split
        return self._read[key]

    def hits(self, call: Call, data: Data) -> list[bool]:
        """Return whether a network is right on each image of the split; NaN is never right."""
        found: list[Tensor] = []
        with torch.inference_mode():
            for images, labels in evaluate.batches(data, self.split):
                logits = call(images)
                right = (logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)
                found.append(right.cpu())
        return [bool(hit) for hit in torch.cat(found)]

    def identity(self, data: Data) -> Mapping[str, Any]:
        """Return the fingerprint of the images of the split."""
        return data.fingerprint if self.split == "val" else data.test_fingerprint or {}


def accuracies(candidates: Sequence[Candidate], images: Images) -> list[list[bool]]:
    """Return whether each network is right on each image, prepared as in its own run.

    An ONNX file uses the data of the first other network with its normalisation. Raises CheckpointError
    unless the images are the same and held out of every training.
    """
    data = [images.of(_trained_with(each, candidates)) for each in candidates]
    for each, its in zip(candidates, data, strict=True):
        if images.identity(its) != images.identity(data[0]):
            raise CheckpointError(_other_images(candidates[0], each, images.split))
    return [images.hits(each.call, its) for each, its in zip(candidates, data, strict=True)]


def _trained_with(candidate: Candidate, candidates: Sequence[Candidate]) -> Trained:
    if candidate.trained_with is not None:
        return candidate.trained_with
    if candidate.kind == "onnx":
        for other in candidates:
            if other.trained_with is not None and _fed_alike(other, candidate):
                return other.trained_with
        raise CheckpointError(
            f"{candidate.label} does not say which data it was trained with: compare it with a checkpoint or "
            "a release of the same run, or use --split none."
        )
    raise CheckpointError(
        f"{candidate.label} does not say which data it was trained with: use --split none for the rest."
    )


def _fed_alike(a: Candidate, b: Candidate) -> bool:
    return (a.description.mean, a.description.std) == (b.description.mean, b.description.std)


def _other_images(a: Candidate, b: Candidate, split: str) -> str:
    if split == "val":
        return (
            f"{a.label} and {b.label} hold other images out for validation, so that one may have trained on "
            "the other's: compare them on --split test."
        )
    return f"{a.label} and {b.label} have other test images: there is nothing to compare."


def latencies(
    candidates: Sequence[Candidate], batch: int, rounds: int, device: torch.device
) -> list[Latency]:
    """Return the seconds of each network for a batch of `batch` images."""
    calls = {}
    for number, each in enumerate(candidates):
        raw = golden.inputs(each.description, batch).to(device)
        calls[str(number)] = (each.call, network.prepare(raw, each.description))
    return list(timing.measure(calls, rounds=rounds, synchronize=timing.waiting_for(device)).values())


def compare(
    candidates: Sequence[Candidate],
    images: Images | None,
    *,
    batches: Sequence[int],
    rounds: int,
    device: torch.device,
) -> list[Row]:
    """Measure every network; `images` None leaves out the accuracy. Raises CheckpointError."""
    hits = accuracies(candidates, images) if images else None
    by_batch = {batch: latencies(candidates, batch, rounds, device) for batch in batches}
    return [
        Row(
            candidate=each,
            size=size(each),
            accuracy=Accuracy.of(hits[number]) if hits else None,
            against=compare_pairs(hits[0], hits[number]) if hits and number else None,
            latency={batch: found[number] for batch, found in by_batch.items()},
        )
        for number, each in enumerate(candidates)
    ]
