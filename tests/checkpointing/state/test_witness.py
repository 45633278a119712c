"""Digests differ for one bit, and not for the place of a tensor."""

import torch

from peakpoint.checkpointing.state.witness import digest_of


def test_layout_makes_no_difference():
    image = torch.randn(2, 3, 4, 4)
    other = image.to(memory_format=torch.channels_last)
    assert digest_of([("w", image)]) == digest_of([("w", other)])


def test_one_bit_a_name_a_type_or_a_shape_makes_one():
    value = torch.tensor([[0.0, 1.0]])
    others = [
        [("w", torch.tensor([[-0.0, 1.0]]))],
        [("v", value)],
        [("w", value.T)],
        [("w", value.view(torch.int32))],
        [("w", value), ("n", torch.tensor(3))],
        [("w", value), ("n", 3)],
    ]
    found = {digest_of([("w", value)]), *map(digest_of, others)}
    assert len(found) == 1 + len(others)


def test_types_that_numpy_lacks_and_scalars_have_one():
    assert digest_of(
        [("w", torch.ones(3, dtype=torch.bfloat16)), ("n", torch.tensor(7)), ("e", torch.empty(0))]
    )
