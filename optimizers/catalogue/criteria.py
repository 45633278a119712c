"""Criteria: the scores whose lowest weights are pruned."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from peakpoint.base.given import require_range
from peakpoint.base.registry import register, retire
from peakpoint.optimizers.pruning.criterion import Accumulating, Context, Criterion

if TYPE_CHECKING:
    from torch import Tensor

_EPS = 1e-8


@register("criterion", "magnitude")
@dataclass(frozen=True)
class Magnitude(Criterion):
    """abs(w) (Han et al. 2015)."""

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        return context.weight.abs()


@register("criterion", "random")
@dataclass(frozen=True)
class Random(Criterion):
    """A random number: the control for every other criterion."""

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        import torch

        return torch.rand(context.shape, generator=context.generator()).to(context.weight.device)


@register("criterion", "bitter0")
@dataclass(frozen=True)
class Bitter0(Criterion):
    """w^2 * abs(m) / (sqrt(v) + eps): AdamWPrune's first hybrid."""

    needs: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        weight, scale = context.weight, context.moment("exp_avg_sq").sqrt().add_(_EPS)
        # The ratio first: w^2 * abs(m) alone is small enough to underflow.
        return context.moment("exp_avg").abs().div_(scale).mul_(weight).mul_(weight)


@register("criterion", "bitter3")
@dataclass(frozen=True)
class Bitter3(Criterion):
    """abs(w) * sqrt(abs(m) + eps): of AdamWPrune."""

    needs: ClassVar[tuple[str, ...]] = ("exp_avg",)

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        return context.moment("exp_avg").abs().add_(_EPS).sqrt_().mul_(context.weight.abs())


@register("criterion", "power")
@dataclass(frozen=True)
class Power(Criterion):
    """abs(w) * (v + eps)^q: between magnitude (q = 0) and the cost of a deletion (q = 0.5).

    With q = 0.5 it orders the weights as w^2 * v, where v stands for the curvature (LeCun et al. 1989).
    """

    needs: ClassVar[tuple[str, ...]] = ("exp_avg_sq",)

    q: float

    def __post_init__(self) -> None:
        require_range(self, "pruning.criterion_options.", 0, 4, "q")

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        # In float64, since pow rounds otherwise in vector code than in scalar code, and no score may depend
        # on the layout.
        scale = context.moment("exp_avg_sq").double().add_(_EPS).pow_(self.q)
        return scale.mul_(context.weight.abs()).to(context.weight.dtype)


@register("criterion", "bitter7")
@dataclass(frozen=True)
class Bitter7(Criterion):
    """abs(w) * (v + eps)^(1/4): power with q = 0.25, recommended by AdamWPrune's author."""

    needs: ClassVar[tuple[str, ...]] = ("exp_avg_sq",)

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        # Two square roots, which round alike in vector and scalar code, cost less than pow in float64.
        root = context.moment("exp_avg_sq").add(_EPS).sqrt_().sqrt_()
        return root.mul_(context.weight.abs())


@register("criterion", "taylor")
@dataclass(frozen=True)
class Taylor(Criterion):
    """abs(w * dL/dw) of the last batch: by how much the loss changes (Molchanov et al. 2019)."""

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape; zeros without a gradient."""
        if context.gradient is None:
            return context.weight.new_zeros(context.shape)
        return (context.weight * context.gradient).abs_()


@register("criterion", "movement")
@dataclass(frozen=True)
class Movement(Accumulating):
    """The sum of -w * dL/dw over the steps: what moves to zero goes (Sanh et al. 2020)."""

    def accumulate(self, sums: "list[Tensor]", weights: "list[Tensor]", gradients: "list[Tensor]") -> None:
        """Subtract w * dL/dw."""
        import torch

        torch._foreach_addcmul_(sums, weights, gradients, value=-1)

    def score(self, context: Context) -> "Tensor":
        """Return a new tensor of the weight's shape."""
        assert context.accumulated is not None
        return context.accumulated.clone()


_ORIGINALS = {
    "bitter1": "It is magnitude: use pruning.criterion=magnitude.",
    "bitter2": "It is magnitude in a training that is 21 % longer: use pruning.criterion=magnitude.",
    "bitter4": "It is bitter3 with a share for each layer that misses the target (81 % for 70 %): use "
    "pruning.criterion=bitter3, with pruning.allocation=erk for shares that add up.",
    "bitter5": "It keeps the weights that are on their way to zero: use pruning.criterion=movement.",
    "bitter6": "Its author keeps abs(w) * (v + eps)^q in its place: use pruning.criterion=power.",
    "bitter8": "It is bitter3 up to a factor that all weights share: use pruning.criterion=bitter3.",
    "bitter9": "It is bitter8 less a tenth of the movement, within 1 % of bitter7 by its author's table: "
    "use pruning.criterion=bitter7.",
}
for _name, _why in _ORIGINALS.items():
    retire("criterion", _name, _why)
