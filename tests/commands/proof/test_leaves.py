"""Checkpoints leaf by leaf: equal is equal to the last bit, and nothing else is."""

import math

import pytest
import torch

from peakpoint.checkpointing.state import serialize
from peakpoint.commands.proof import leaves


def compared(folder, *weights):
    """What is found of two files with these weights and other times."""
    paths = [folder / "a.pt", folder / "b.pt"]
    for number, (path, weight) in enumerate(zip(paths, weights, strict=True)):
        with path.open("wb") as file:
            serialize.dump({"model_state_dict": {"w": weight}, "epoch": 3, "timestamp": str(number)}, file)
    return leaves.compare(*paths)


def test_nan_equals_itself(tmp_path):
    assert compared(tmp_path, *(torch.tensor([1.0, math.nan, -0.0]) for _ in range(2))) == (2, None)


@pytest.mark.parametrize(
    ("other", "values"),
    [
        (torch.tensor([0.0, -0.0]), ("element 1 is 0.0; 1 of 2 elements differ", "element 1 is -0.0")),
        (torch.zeros(4)[::2], ("strides (1,)", "strides (2,)")),
        (torch.zeros(2).half(), tuple(f"a tensor of torch.{t}, shape (2,)" for t in ("float32", "float16"))),
    ],
)
def test_the_first_that_differs_is_shown(tmp_path, other, values):
    assert compared(tmp_path, torch.zeros(2), other) == (2, ("model_state_dict/w", *values))
