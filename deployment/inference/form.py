"""The forms in which weights are released, checked without torch."""

from dataclasses import dataclass

from peakpoint.base.errors import CheckpointError
from peakpoint.base.text import nearest
from peakpoint.checkpointing.storage.manifest import SAFETENSORS

CARDS = "metadata/model_cards"
SUFFIXES = {"pt": ".pt", "safetensors": SAFETENSORS}
DTYPES = ("float32", "float16", "bfloat16")
SPLITS = ("val", "test")
"""Splits of a run's data on which a network is measured."""
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
                raise CheckpointError(f"{name}={value} is not a choice{nearest(value, known)}")
        if self.compress and self.format != "pt":
            raise CheckpointError(f"{self.format} cannot be compressed: use format=pt, or compress=false.")
