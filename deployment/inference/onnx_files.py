"""ONNX files, written from a network and run in onnxruntime; the only module that uses the onnx packages."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError, first_line
from peakpoint.checkpointing.storage.foreign import described

INPUT, OUTPUT = "images", "logits"
OLDEST = 18
"""Oldest opset that torch's exporter writes; older ones need a conversion that often fails."""

PREFIX = "peakpoint."
LARGEST = 2**31 - 1
"""Largest protobuf message in bytes."""


def check(opset: int | None) -> None:
    """Raise CheckpointError when the packages are missing or cannot write this opset."""
    onnx = _package("onnx")
    for name in ("onnxscript", "onnxruntime"):
        _package(name)
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not OLDEST <= opset <= newest:
        raise CheckpointError(f"--opset {opset} cannot be written: choose one from {OLDEST} to {newest}.")


def convert(
    network: nn.Module, traced: Tensor, varies: Any, opset: int | None, notes: Mapping[str, str]
) -> tuple[bytes, int]:
    """Return a network as the bytes of one ONNX file, and its opset. Raises CheckpointError.

    `varies` is torch.export's dynamic_shapes; `notes` go into the metadata as `peakpoint.NAME`.
    """
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                network,
                (traced,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                dynamic_shapes=varies,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
            assert program is not None  # it is None only where a file is given
            proto = program.model_proto
            size = proto.ByteSize()
    except Exception as error:  # the exporter raises many types, some of them private
        raise CheckpointError(f"torch.onnx cannot export this network: {first_line(error)}") from None
    if size > LARGEST:
        raise CheckpointError(
            f"The network takes {size} bytes, and an ONNX file holds at most {LARGEST}: use --format torch."
        )
    written = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    if opset not in (None, written):
        raise CheckpointError(
            f"This network cannot be written in opset {opset}, only in {written}: leave --opset out."
        )
    _without_machine(proto)
    for name, value in notes.items():
        proto.metadata_props.add(key=f"{PREFIX}{name}", value=value)
    return proto.SerializeToString(deterministic=True), written


def _without_machine(proto: Any) -> None:
    """Remove the exporter's notes on this machine, such as the path of each line of source."""
    graphs = [proto.graph, *proto.functions]
    for graph in graphs:
        for part in (graph, *graph.node, *getattr(graph, "input", []), *getattr(graph, "output", [])):
            if hasattr(part, "metadata_props"):
                del part.metadata_props[:]
    for value in (*proto.graph.initializer, *proto.graph.value_info):
        del value.metadata_props[:]


@dataclass(frozen=True)
class Opened:
    """An ONNX file in onnxruntime; `notes` are those given to `convert`."""

    file: Path
    session: Any
    notes: Mapping[str, str]

    def run(self, images: Tensor) -> Tensor:
        """Return the outputs (N, classes) for images (N, C, H, W) float32."""
        try:
            (found,) = self.session.run([OUTPUT], {INPUT: images.contiguous().numpy()})
        except Exception as error:  # onnxruntime has a type for each code of its own
            raise CheckpointError(f"{self.file} cannot be run by onnxruntime: {first_line(error)}") from None
        return torch.from_numpy(found)

    @property
    def batch(self) -> int | None:
        """Return the number of images at a time, None for any number."""
        fed = next((each.shape for each in self.session.get_inputs() if each.name == INPUT), [None])
        return fed[0] if isinstance(fed[0], int) else None


def opened(file: Path, threads: int | None = None) -> Opened:
    """Open an ONNX file on the CPU; `threads` None is onnxruntime's choice. Raises CheckpointError."""
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors; those are exceptions too
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others run beside it
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    bounded.opened(file).close()  # onnxruntime would wait for a pipe
    try:
        session = runtime.InferenceSession(
            str(file), sess_options=options, providers=["CPUExecutionProvider"]
        )
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime has a type for each code of its own
        what = described(file) or first_line(error)
        raise CheckpointError(f"{file} cannot be opened in onnxruntime: {what.strip()}") from None
    notes = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    return Opened(file, session, notes)


def weights(file: Path) -> dict[str, Tensor]:
    """Return the floating-point constants of an ONNX file by name. Raises CheckpointError."""
    onnx = _package("onnx")
    bounded.opened(file).close()
    try:
        proto = onnx.load(str(file))
        values = {each.name: onnx.numpy_helper.to_array(each) for each in proto.graph.initializer}
    except Exception as error:  # protobuf and onnx have types of their own
        raise CheckpointError(f"{file} cannot be read as ONNX: {first_line(error)}") from None
    return {name: torch.tensor(value) for name, value in values.items() if value.dtype.kind == "f"}


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise CheckpointError(f"{name} is not installed: pip install 'peakpoint[onnx]'.") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' logs and warnings; their failures are exceptions all the same."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript")]
    before = [(each, each.level) for each in loggers]
    try:
        for each in loggers:
            each.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in before:
            each.setLevel(level)
