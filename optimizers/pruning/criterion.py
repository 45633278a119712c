"""The contract of a criterion: a score for every weight, from all that an update of the masks knows of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Context:
    """One weight at one update of the masks.

    `name` is its canonical name. `state` is what the optimizer keeps for it, empty before its first gradient.
    """

    name: str
    weight: "Tensor"
    state: Mapping[str, "Tensor"]

    @property
    def gradient(self) -> "Tensor | None":
        """The gradient of the step that was just taken, of the weight's shape; None without one."""
        return self.weight.grad

    @property
    def shape(self) -> "torch.Size":
        """The shape of the weight, and so of the score."""
        return self.weight.shape

    def moment(self, name: str) -> "Tensor":
        """A tensor of the optimizer's state; zeros for a weight that never had a gradient."""
        import torch

        return self.state[name] if self.state else torch.zeros_like(self.weight)


@dataclass(frozen=True)
class Criterion:
    """Scores weights, of which the lowest are pruned: derive from it, register, and write `score`.

    `needs` has the names of the tensors of the optimizer's state that it reads.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def score(self, context: Context) -> "Tensor":
        """A new tensor of the weight's shape."""
        raise NotImplementedError
