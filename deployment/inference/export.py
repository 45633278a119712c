"""Export of a network to ONNX or torch.export, compared with its source.

The file is staged, run in its runtime on the golden inputs of the release, and gets its name only when its
outputs agree with the golden ones. A checkpoint that is not a release is compared with its own network.
"""

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peakpoint.base.disk_space import free_room, in_words
from peakpoint.base.errors import CheckpointError, first_line, os_reason
from peakpoint.base.files import Staged, fsync_directory
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.manifest import PRODUCTION, Manifest
from peakpoint.deployment.inference import golden, network, onnx_files
from peakpoint.deployment.inference.golden import Agreement
from peakpoint.deployment.inference.network import Description
from peakpoint.deployment.inference.onnx_files import quiet

TOLERANCE = 1e-4
"""Largest error, as a fraction of the largest golden output: the order of float32 sums makes about 1e-6."""

NOTES = "peakpoint.json"
"""Extra file of a .pt2 that holds the notes on its source, as the metadata of an ONNX file does."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A network in evaluation mode, float32, on the CPU, with its description, inputs and outputs.

    `images` (N, H, W, C) are uint8, `outputs` (N, classes) float32; they are the golden ones where
    `released`, else the outputs of the loaded network.
    """

    manifest: Manifest
    network: nn.Module
    description: Description
    images: Tensor
    outputs: Tensor
    released: bool

    def notes(self) -> dict[str, str]:
        """Return the source of an exported file, its inputs and outputs, as text by name."""
        manifest = self.manifest
        found = {"source": manifest.file, "digest": manifest.digest, "run": manifest.run}
        if manifest.tier == PRODUCTION:
            found["version"] = listing.version_of(manifest)
        if manifest.git_commit:
            found["git_commit"] = manifest.git_commit
        return {**found, "config": json.dumps(self.description.config())}


def source(path: Path) -> Source:
    """Return the network of a path, as for `load_model`, ready to be exported.

    Raises CheckpointError, also for a release whose network does not reproduce its golden outputs here.
    """
    root, manifest = network.resolve(path)
    built, description = network.rebuilt(root, manifest)
    released = golden.has(manifest)
    if released:
        images, outputs = golden.read(root, manifest)
        golden.check(built, description, (images, outputs))
    else:
        images = golden.inputs(description)
        outputs = golden.outputs(built, description, images)
    return Source(
        manifest=manifest,
        network=built,
        description=description,
        images=images,
        outputs=outputs,
        released=released,
    )


def write(
    found: Source, target: Path, kind: str, *, opset: int | None, batch: int | None
) -> tuple[int | None, Agreement]:
    """Export a network to a file that must not exist; `batch` None takes any number of images at a time.

    `kind` is onnx or torch; `opset` None is the exporter's choice. Returns the opset, None for torch, and the
    agreement of the outputs with the source's. Raises CheckpointError, leaving no file, when it cannot be
    written or the outputs differ.
    """
    # torch.export would specialise a batch of 1.
    traced = torch.zeros(batch or 2, *found.description.image_shape)
    varies = None if batch else ({0: torch.export.Dim("batch", min=1)},)
    if kind == "onnx":
        content, opset = onnx_files.convert(found.network, traced, varies, opset, found.notes())
    else:
        content = _program(found, traced, varies)
    with _refusing(target, len(content)):
        with Staged(target, target.suffix) as staged:
            staged.write(content)
            staged.sync()
            agreement = _compared(staged.path, kind, found, batch)
            if not agreement.sound:
                raise CheckpointError(
                    f"{target} was not written: its outputs differ from the golden ones by "
                    f"{agreement.largest:.3g}, {agreement.allowed:.3g} is allowed, and {agreement.flipped} "
                    f"of {agreement.count} images get another class."
                )
            staged.create()
        fsync_directory(target.parent)
    return opset, agreement


def _compared(file: Path, kind: str, found: Source, batch: int | None) -> Agreement:
    """Compare a file's outputs with its source's: all at once and, where it takes any number, one by one."""
    if kind == "onnx":
        call = onnx_files.opened(file).run
    else:
        with quiet():
            call = torch.export.load(file).module()
    images = network.prepare(found.images, found.description)
    sizes = [batch] if batch else [len(images), 1]
    each = [golden.compare(in_batches(call, images, size), found.outputs, TOLERANCE) for size in sizes]
    return max(each, key=lambda agreement: (not agreement.sound, agreement.largest))


def in_batches(call: Callable[[Tensor], Tensor], images: Tensor, size: int) -> Tensor:
    """Return the outputs for all images, `size` at a time; the last batch is filled with earlier images."""
    missing = torch.arange(-len(images) % size) % len(images)
    with torch.inference_mode():
        parts = [call(part) for part in torch.cat([images, images[missing]]).split(size)]
    return torch.cat(parts)[: len(images)]


def _program(found: Source, traced: Tensor, varies: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(found.network, (traced,), dynamic_shapes=varies)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # it names the folders of this machine
            torch.export.save(program, buffer, extra_files={NOTES: json.dumps(found.notes())})
    except Exception as error:  # torch.export raises many types, some of them private
        raise CheckpointError(f"torch.export cannot export this network: {first_line(error)}") from None
    return buffer.getvalue()


@contextlib.contextmanager
def _refusing(target: Path, needed: int) -> Iterator[None]:
    """Raise CheckpointError for errors of the operating system, after the staged file is gone."""
    try:
        yield
    except FileExistsError:
        raise CheckpointError(f"{target} exists: choose another name.") from None
    except OSError as error:
        free, _ = free_room(target.parent)
        room = f"; it needs {in_words(needed)} and {in_words(free)} are free" if free is not None else ""
        raise CheckpointError(f"{target} was not written: {os_reason(error)}{room}.") from error
