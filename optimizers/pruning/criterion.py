"""The contract of a criterion: a score for every weight, from all that an update of the masks knows of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peakpoint.base.digests import stable_number

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ScoreError(ValueError):
    """A criterion cannot score the weights, or its scores are not numbers that sort."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One weight at one update of the masks.

    `name` is its canonical name. `state` is what the optimizer keeps for it; before its first gradient, zeros
    for what the criterion needs. `step` counts the steps of the run from 1, `seed` is that of the run.
    `accumulated` is what an Accumulating criterion has summed over the steps, of the weight's shape.
    """

    name: str
    weight: "Tensor"
    state: Mapping[str, "Tensor"]
    step: int
    seed: int
    accumulated: "Tensor | None" = None

    @property
    def gradient(self) -> "Tensor | None":
        """Return the gradient of the step that was just taken, of the weight's shape; None without one."""
        return self.weight.grad

    @property
    def shape(self) -> "torch.Size":
        """Return the shape of the weight, and so of the score."""
        return self.weight.shape

    def moment(self, name: str) -> "Tensor":
        """Return a tensor of the optimizer's state. Raises ScoreError when the optimizer keeps none."""
        if name not in self.state:
            raise ScoreError(
                f"The optimizer keeps no {name} for {self.name}: a criterion names in `needs` what it reads, "
                "and the optimizer must keep it."
            )
        return self.state[name]

    def generator(self) -> "torch.Generator":
        """Return a generator on the CPU for this weight and step: a resumed run draws the same numbers."""
        import torch

        return torch.Generator().manual_seed(stable_number("pruning", self.seed, self.step, self.name))


@dataclass(frozen=True)
class Criterion(ABC):
    """Scores weights, of which the lowest are pruned: derive a frozen dataclass, register, and write `score`.

    Its fields are its settings, given as pruning.criterion_options. `needs` has the names of the tensors of
    the optimizer's state that it reads.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of floats of the weight's shape, without NaN."""


@dataclass(frozen=True)
class Accumulating(Criterion):
    """A criterion that sums something over the steps, in one tensor of float32 for each weight.

    The sums are saved with the masks. They start at zero, and are set to zero where a weight is pruned.
    """

    @abstractmethod
    def accumulate(self, sums: "list[Tensor]", weights: "list[Tensor]", gradients: "list[Tensor]") -> None:
        """Add what a step brings to the sums, in place, before the optimizer moves the weights.

        The gradients of pruned weights are zero.
        """
