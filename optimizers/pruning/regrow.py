"""Regrowth: at each update some kept weights are pruned, and as many pruned ones are trained again.

By the largest gradients (RigL, Evci et al. 2020, arXiv:1911.11134) or by chance (SET, Mocanu et al. 2018,
arXiv:1707.04780); while the sparsity still rises, as in GraNet (Liu et al. 2021, arXiv:2106.10404).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from peakpoint.base.digests import stable_number
from peakpoint.optimizers.pruning.lowest_k import HIGHEST, select_keys, sort_keys

GROWTHS = ("gradient", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrowth:
    """How many of the kept weights are exchanged: `fraction` at step `start`, by a cosine 0 at `until`."""

    fraction: float
    start: int
    until: int

    def at(self, step: int) -> float:
        """Return the fraction of the kept weights of each tensor that are exchanged after `step` steps."""
        if not self.start <= step < self.until:
            return 0.0
        progress = (step - self.start) / (self.until - self.start)
        return self.fraction / 2 * (1 + math.cos(math.pi * progress))


def exchange(keys: Tensor, pruned: int, fraction: float, growth: Tensor) -> Tensor:
    """Return what to prune of one tensor, as 1-D bool with `pruned` values True.

    Beside the lowest keys, `fraction` of the rest is pruned as well, and of all these as many come back:
    those with the largest `growth` (1-D float).
    """
    count = min(int(fraction * (keys.numel() - pruned)), pruned)
    gone = select_keys([keys], pruned + count)[0]
    order = sort_keys(-growth).masked_fill_(~gone, HIGHEST)
    return gone & ~select_keys([order], count)[0]


def by_chance(name: str, weight: Tensor, seed: int, step: int) -> Tensor:
    """Return a random number for each weight of a tensor; a resumed run draws the same ones."""
    generator = torch.Generator().manual_seed(stable_number("regrow", seed, step, name))
    return torch.rand(weight.numel(), generator=generator).to(weight.device)
