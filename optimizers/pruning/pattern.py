"""N:M sparsity: of every M weights in a row along the input channels, N may be other than zero.

Sparse tensor cores of Nvidia's GPUs compute with 2:4 (Mishra et al. 2021, arXiv:2104.08378).
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 32
"""Of the groups: the ranks within a group are found by comparing each two of its weights."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """N of every M weights are kept. Dimension 1 of a weight has its input channels."""

    kept: int
    group: int

    @property
    def target(self) -> float:
        """Return the fraction of zeros of a tensor that has the pattern."""
        return (self.group - self.kept) / self.group

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether the input channels of a weight divide into groups."""
        return len(shape) > 1 and shape[1] % self.group == 0

    def grouped(self, values: "Tensor") -> "Tensor":
        """Return the values of a weight, of its shape, as rows of one group each."""
        return values.movedim(1, -1).reshape(-1, self.group)

    def prunable(self, keys: "Tensor") -> "Tensor":
        """Return a bool tensor that is True at the lowest M - N keys of every group; ties go by place."""
        import torch

        rows = self.grouped(keys)
        columns = rows.unbind(1)
        ranks = torch.zeros_like(rows, dtype=torch.int8)
        for place, column in enumerate(columns):
            for other, others in enumerate(columns):
                if other < place:
                    ranks[:, place] += others <= column
                elif other > place:
                    ranks[:, place] += others < column
        lowest = ranks < self.group - self.kept
        moved = keys.movedim(1, -1)
        return lowest.view(moved.shape).movedim(-1, 1)

    def holds(self, weight: "Tensor") -> bool:
        """Return whether every group of a weight has at most N values other than zero."""
        return bool((self.grouped(weight).count_nonzero(1) <= self.kept).all())


def parsed(text: str) -> Pattern:
    """Return the pattern `N:M`. Raises ValueError for any other text."""
    found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
    pattern = Pattern(int(found[1]), int(found[2])) if found else Pattern(0, 0)
    if not 0 < pattern.kept < pattern.group <= LARGEST:
        raise ValueError(
            f"pruning.pattern={text} is no pattern: give N:M, as 2:4, where N of every M weights are kept, "
            f"with N below M and M at most {LARGEST}."
        )
    return pattern
