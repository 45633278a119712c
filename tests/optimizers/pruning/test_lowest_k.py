import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peakpoint.optimizers.pruning.lowest_k import lowest_where, select_keys, sort_keys

SPECIAL = [0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3e38, -3e38, math.inf, -math.inf, math.nan, -math.nan]
SCORE = st.sampled_from(SPECIAL) | st.floats(width=32)


def reference(scores: list[torch.Tensor], k: int) -> list[bool]:
    """Python's stable sort of the values, with NaN as -inf."""
    values = [value for score in scores for value in score.flatten().tolist()]
    order = sorted(range(len(values)), key=lambda i: -math.inf if math.isnan(values[i]) else values[i])
    lowest = set(order[:k])
    return [i in lowest for i in range(len(values))]


def selected(scores: list[torch.Tensor], k: int) -> list[bool]:
    return [value for mask in select_keys(list(map(sort_keys, scores)), k) for value in mask.tolist()]


@given(st.lists(st.lists(SCORE, max_size=8), min_size=1, max_size=4), st.data())
def test_agrees_with_a_stable_sort(values, data):
    scores = [torch.tensor(part, dtype=torch.float32) for part in values]
    k = data.draw(st.integers(0, sum(map(len, values))))
    assert selected(scores, k) == reference(scores, k)


@pytest.mark.parametrize("k", [0, 1, 700, 1399, 1400])
def test_agrees_with_a_stable_sort_on_many_values(k):
    generator = torch.Generator().manual_seed(k)
    fine = torch.randn(10, 100, generator=generator)
    coarse = torch.randn(400, generator=generator).round(decimals=1)
    assert selected([fine, coarse], k) == reference([fine, coarse], k)


@pytest.mark.parametrize("value", [0.0, -0.0, 2.5, -2.5, math.inf, -math.inf, math.nan])
def test_ties_go_by_flat_index_and_never_overshoot(value):
    assert selected([torch.full((2, 3), value), torch.full((4,), value)], 7) == [True] * 7 + [False] * 3


def test_scores_that_differ_only_in_the_lower_half_of_their_bits():
    scores = torch.arange(1000, dtype=torch.int32).add(0x3F800000).flip(0).view(torch.float32)
    assert selected([scores], 10) == [False] * 990 + [True] * 10


def test_what_is_not_kept_ranks_below_every_score():
    keys = sort_keys(torch.tensor([-math.inf, math.nan, -3e38, 5.0, 7.0]))
    lowest_where(keys, torch.tensor([True, True, True, False, True]))
    assert select_keys([keys], 1)[0].tolist() == [False, False, False, True, False]


def test_the_memory_format_has_no_say():
    scores = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).round()
    other = scores.contiguous(memory_format=torch.channels_last)
    assert selected([other], 150) == selected([scores], 150) == reference([scores], 150)


def test_scores_are_left_as_they_were():
    scores = torch.tensor([-0.0, math.nan, -3.0])
    copy = scores.clone()
    sort_keys(scores)
    assert torch.equal(scores.view(torch.int32), copy.view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    scores = torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=dtype)
    assert selected([scores], 2) == [False, True, False, True]


@pytest.mark.parametrize("k", [-1, 4])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"Cannot select {k} of 3"):
        selected([torch.zeros(3)], k)
