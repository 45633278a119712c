"""What the tests of promote share: the texts of a card, and views of its results."""

import json
from pathlib import Path

import torch

from peakpoint import load_model

TEXTS = """
description: Tells synthetic classes apart.
intended_use: Tests.
limitations: [Images that nobody took.]
ethical_considerations: None known.
license: apache-2.0
"""


def best(run: Path) -> Path:
    return next((run / "checkpoints" / "milestone").glob("best_accuracy_at_sparsity_0.70_*.pt"))


def tree(folder: Path) -> dict[str, int]:
    """Return every file below a folder with its size; locks do not count."""
    return {str(p): p.lstat().st_size for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(done) -> str:
    """Return the one line of a refusal."""
    code, out, err = done
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def card_of(root: Path, version: str) -> dict:
    return json.loads((root / "metadata" / "model_cards" / f"v{version}.json").read_text())


def logits(path) -> torch.Tensor:
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load_model(path)(images)
