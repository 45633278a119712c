"""What an exported file may be called and be: checked before torch is imported."""

from pathlib import Path

from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import check_new

ONNX, TORCH = "onnx", "torch"
SUFFIXES = {ONNX: ".onnx", TORCH: ".pt2"}


def check(target: Path, kind: str, *, opset: int | None, batch: int | None) -> None:
    """Raise CheckpointError when such a file cannot be made here."""
    check_new(target)
    if target.suffix != SUFFIXES[kind]:
        raise CheckpointError(f"{target} must end in {SUFFIXES[kind]}, as files of {kind} do.")
    if batch is not None and batch < 1:
        raise CheckpointError(f"A batch of {batch} images is none: give a number from 1, or dynamic.")
    if kind == TORCH and opset is not None:
        raise CheckpointError("torch.export has no opset: leave it out, or use --format onnx.")
