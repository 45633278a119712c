"""The exact k lowest scores of many tensors, by two histograms of 16 bits each.

A float32 score becomes an int32 with the same order, so the k-th lowest is found by counting: first the upper
16 bits of every key, then the lower 16 bits of the keys in the one bin that holds it. That is exact, needs
no sort, and goes tensor by tensor. Ties are broken by flat index in logical (row-major) order over the
tensors as listed, so that the memory format has no say.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

_LOWEST = -(2**31)
HIGHEST = 2**31 - 1
"""A key that no score has but NaN, which none may be: its weight is taken last."""
_BINS = 2**16


def sort_keys(scores: Tensor) -> Tensor:
    """Return int32 keys in logical order, 1-D, that sort as the scores do as float32; NaN ranks with -inf.

    0.0 and -0.0 have one key, and every key is above the reserved lowest one.
    """
    flat = scores.detach().float().contiguous().view(-1)
    flat = flat.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    # Adding 0.0 turns -0.0 into 0.0, which has other bits and must tie with it.
    keys = flat.add_(0.0).view(torch.int32)
    # Negative floats are sign and magnitude: flipping the magnitude bits puts them in the order of integers.
    return keys.bitwise_xor_((keys >> 31).bitwise_and_(0x7FFFFFFF))


def lowest_where(keys: Tensor, kept: Tensor) -> Tensor:
    """Put the keys that are not `kept` (1-D bool) below all others, in place."""
    return keys.mul_(kept).add_(kept.logical_not(), alpha=_LOWEST)


def select_keys(keys: list[Tensor], k: int) -> list[Tensor]:
    """Return a bool tensor for each 1-D tensor of int32 keys, True at exactly the k lowest of all of them.

    Equal keys are taken in flat order. Raises ValueError unless 0 <= k <= number of keys.
    """
    total = sum(key.numel() for key in keys)
    if not 0 <= k <= total:
        raise ValueError(f"Cannot select {k} of {total} weights.")
    if k in (0, total):
        return [torch.full_like(key, k > 0, dtype=torch.bool) for key in keys]
    threshold, ties, wanted = _kth_lowest(keys, k)
    if ties == wanted:
        return [key <= threshold for key in keys]
    masks = []
    for key in keys:
        mask = key < threshold
        if wanted:
            first = (key == threshold).nonzero().view(-1)[:wanted]
            mask[first] = True
            wanted -= first.numel()
        masks.append(mask)
    return masks


def _kth_lowest(keys: list[Tensor], k: int) -> tuple[int, int, int]:
    """Return the k-th lowest key, how many keys equal it, and how many of those are among the k lowest."""
    counts = _histogram((key >> 16).add_(_BINS // 2) for key in keys)
    upper, below = _bin_of(counts, k)
    low, high = (upper - _BINS // 2) * _BINS, (upper - _BINS // 2 + 1) * _BINS - 1
    counts = _histogram(key[(key >= low) & (key <= high)] - low for key in keys)
    lower, below_in_bin = _bin_of(counts, k - below)
    return low + lower, int(counts[lower]), k - below - below_in_bin


def _histogram(parts: Iterable[Tensor]) -> Tensor:
    """Return how many of all the parts fall into each bin; one part is alive at a time."""
    counts = [torch.bincount(part, minlength=_BINS) for part in parts]
    return torch.stack(counts).sum(0)


def _bin_of(counts: Tensor, k: int) -> tuple[int, int]:
    """Return the bin that holds the k-th lowest, and how many lie in the bins below it."""
    totals = counts.cumsum(0)
    index = int(torch.searchsorted(totals, k))
    return index, int(totals[index] - counts[index])
