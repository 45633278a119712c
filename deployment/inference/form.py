"""The forms in which weights are released and networks exported, checked without torch."""

from dataclasses import dataclass
from pathlib import Path

from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import check_new
from peakpoint.checkpointing.storage.manifest import SAFETENSORS

CARDS = "metadata/model_cards"
SUFFIXES = {"pt": ".pt", "safetensors": SAFETENSORS}
DTYPES = ("float32", "float16", "bfloat16")
ONNX, TORCH = "onnx", "torch"
EXPORTED = {ONNX: ".onnx", TORCH: ".pt2"}
"""Suffix of an exported file, by its format."""
KEPT = "kept"
"""In place of a dtype: each weight keeps its own."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The form of released weights: format pt or safetensors, dtype float32, float16, bfloat16 or kept.

    `compress` packs zeros away, exactly, which only pt can. Raises CheckpointError for other values.
    """

    format: str
    dtype: str
    compress: bool

    def __post_init__(self) -> None:
        for name, known in (("format", SUFFIXES), ("dtype", (*DTYPES, KEPT))):
            if (value := getattr(self, name)) not in known:
                raise CheckpointError(f"{name}={value} is not one of {', '.join(known)}.")
        if self.compress and self.format != "pt":
            raise CheckpointError(f"{self.format} cannot be compressed: use format=pt, or compress=false.")


def check_export(target: Path, kind: str, *, opset: int | None, batch: int | None) -> None:
    """Raise CheckpointError when a network cannot be exported to such a file."""
    check_new(target)
    if target.suffix != EXPORTED[kind]:
        raise CheckpointError(f"{target} must end in {EXPORTED[kind]}, as files of {kind} do.")
    if batch is not None and batch < 1:
        raise CheckpointError(f"A batch of {batch} images is none: give a number from 1, or dynamic.")
    if kind == TORCH and opset is not None:
        raise CheckpointError("torch.export has no opset: leave it out, or use --format onnx.")
