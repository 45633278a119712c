"""What every optimizer and every learning-rate schedule that is registered has."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakpoint.base.given import INF, require_range

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

Factor = Callable[[int], float]
"""Of the learning rate, as a function of the step."""


@dataclass(kw_only=True)
class Optimizer(ABC):
    """The settings of an optimizer: derive from it, register, and build torch's optimizer in `build`."""

    name: str
    lr: float
    weight_decay: float
    clip_norm: float | None

    def __post_init__(self) -> None:
        require_range(self, "optimizer.", 0, INF, "lr weight_decay")
        require_range(self, "optimizer.", 1e-12, INF, "clip_norm")

    @property
    def state(self) -> tuple[str, ...] | None:
        """Return the names of the tensors kept for each weight; None where the first step shows them."""
        return None

    @abstractmethod
    def build(self, groups: list[dict[str, Any]]) -> "TorchOptimizer":
        """Return the optimizer over groups of `param_groups`, whose weight decay is set already."""


@dataclass(kw_only=True)
class Scheduler(ABC):
    """The settings of a learning rate over the run, as a factor of optimizer.lr; warm-up counts in epochs."""

    name: str
    warmup_epochs: float

    def __post_init__(self) -> None:
        require_range(self, "scheduler.", 0, INF, "warmup_epochs")

    @abstractmethod
    def build(self, total: int, warmup: int) -> Factor:
        """Return the factor by the step, for a run of `total` steps that warms up over `warmup`."""
