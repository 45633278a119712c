"""What every optimizer and every learning-rate schedule that is registered has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from peakpoint.base.given import INF, require_range

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

Factor = Callable[[int], float]
"""Of the learning rate, as a function of the step."""


@dataclass(kw_only=True)
class Optimizer:
    """The settings of an optimizer: derive from it, register, and build torch's optimizer in `build`.

    `state` has the names of the tensors that it keeps for each weight, which criteria of pruning may read;
    None where they are not known before it is built.
    """

    state: ClassVar[tuple[str, ...] | None] = None
    name: str
    lr: float
    weight_decay: float
    clip_norm: float | None

    def __post_init__(self) -> None:
        require_range(self, "optimizer.", 0, INF, "lr weight_decay")
        require_range(self, "optimizer.", 1e-12, INF, "clip_norm")

    def build(self, groups: list[dict[str, Any]]) -> "TorchOptimizer":
        """The optimizer over groups of `param_groups`, whose weight decay is set already."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Scheduler:
    """The settings of a learning rate over the run, as a factor of optimizer.lr; warm-up counts in epochs."""

    name: str
    warmup_epochs: float

    def __post_init__(self) -> None:
        require_range(self, "scheduler.", 0, INF, "warmup_epochs")

    def build(self, total: int, warmup: int) -> Factor:
        """The factor as a function of the step, for a run of `total` steps that warms up over `warmup`."""
        raise NotImplementedError
