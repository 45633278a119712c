"""What can be configured: names, types and ranges. The values are in conf/, and nowhere else.

Each group of conf/ has its dataclass here, registered with Hydra under `schema/`, so that a wrong key or
type fails while the configuration is composed. Registration and the rules across fields are in check.py.
"""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from peakpoint.base.errors import UserError
from peakpoint.base.given import BELOW_ONE, INF, require_range
from peakpoint.optimizers.pruning.pattern import parsed
from peakpoint.optimizers.scope import Scope


class Device(Enum):
    """Where to train; `auto` takes CUDA when there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """Arithmetic of the forward pass; the weights are always float32."""

    fp32 = "fp32"
    bf16 = "bf16"


class Regrow(Enum):
    """Which pruned weights are trained again: `all` at a resume, the others at each update of the masks."""

    none = "none"
    all = "all"
    gradient = "gradient"
    random = "random"


class Nonfinite(Enum):
    """What to do when a loss is NaN or infinite; `skip` looks at the gradients as well."""

    stop = "stop"
    skip = "skip"


def require(condition: bool, sentence: str) -> None:
    """Raise UserError with `sentence` unless the condition holds."""
    if not condition:
        raise UserError(sentence)


PRUNING = ("criterion", "schedule", "allocation")
"""Kinds of components that keys of `pruning` name; the key `criterion_options` has a criterion's settings."""


@dataclass(kw_only=True)
class Pruning:
    """Which weights go, how many, and when; criterion None, `regrow` all and `target` 0 train dense."""

    criterion: str | None
    criterion_options: dict[str, Any]
    target: float
    exclude: list[str]
    embeddings: bool
    min_density: float
    pattern: str | None
    regrow: Regrow
    regrow_fraction: float
    regrow_until: float
    allocation: str
    allocation_options: dict[str, Any]
    schedule: str
    schedule_options: dict[str, Any]
    frequency: int
    start_step: int | None
    end_step: int | None
    start_epoch: float | None
    end_epoch: float | None
    start_fraction: float
    end_fraction: float

    def __post_init__(self) -> None:
        require_range(self, "pruning.", 0, BELOW_ONE, "target")
        require_range(self, "pruning.", 1, INF, "frequency")
        require_range(self, "pruning.", 0, INF, "start_step end_step start_epoch end_epoch")
        require_range(self, "pruning.", 0, 1, "start_fraction end_fraction regrow_until")
        require_range(self, "pruning.", 0, BELOW_ONE, "min_density regrow_fraction")
        choice = "regrow" if self.regrow is Regrow.all else "none"
        require(
            self.target == 0 or (self.criterion is not None and self.regrow is not Regrow.all),
            f"pruning={choice} trains dense, but pruning.target={self.target:g}: "
            "choose pruning=magnitude or pruning=state, or leave the target out.",
        )
        for end in ("start", "end"):
            require(
                getattr(self, f"{end}_step") is None or getattr(self, f"{end}_epoch") is None,
                f"pruning.{end}_step and pruning.{end}_epoch are both given: keep one of them.",
            )
        _ = self.scope  # checks the pattern

    @property
    def scope(self) -> Scope:
        """Return which weights may be pruned. Raises ValueError for what is no pattern."""
        return Scope(
            exclude=tuple(self.exclude),
            embeddings=self.embeddings,
            pattern=parsed(self.pattern) if self.pattern else None,
        )


class Mode(StrEnum):
    """Which value of a metric is better; policies refer to it as text."""

    max = "max"
    min = "min"


@dataclass(kw_only=True)
class Monitor:
    """The metric that says which epoch is the peak."""

    metric: str
    mode: Mode


class WhenBusy(Enum):
    """What a save does that comes while another is being written."""

    wait = "wait"
    skip = "skip"


class OnError(Enum):
    """What a failed save does to the run."""

    warn = "warn"
    stop = "stop"


@dataclass(kw_only=True)
class Mirror:
    """A copy of the checkpoints in a remote place, made while training continues."""

    url: str | None
    what: list[str]
    keep: int | None
    queue: int
    wait_s: float
    timeout_s: float

    def __post_init__(self) -> None:
        require_range(self, "checkpoint.mirror.", 1, INF, "keep queue")
        require_range(self, "checkpoint.mirror.", 0, INF, "wait_s")
        require_range(self, "checkpoint.mirror.", 1e-9, INF, "timeout_s")


@dataclass(kw_only=True)
class Checkpoint:
    """What the checkpoint policies share, and the policies themselves by name."""

    interval: int | None
    interval_steps: int | None
    interval_minutes: float | None
    keep_last: int
    background: bool
    compress: bool
    when_busy: WhenBusy
    on_error: OnError
    name: str | None
    mirror: Mirror
    monitor: Monitor
    policy: dict[str, Any]


class Sampler(Enum):
    """How a search chooses its next trial."""

    tpe = "tpe"
    random = "random"
    grid = "grid"


class Pruner(Enum):
    """How a search compares a trial with the others while it trains."""

    none = "none"
    median = "median"
    successive_halving = "successive_halving"
    hyperband = "hyperband"


@dataclass(kw_only=True)
class Search:
    """A search: how many trials, how they are chosen, and which are stopped."""

    sampler: Sampler
    trials: int | None
    processes: int
    seed: int
    pruner: Pruner
    startup_trials: int
    from_epoch: int
    at_target: bool
    storage: str | None
    study: str | None

    def __post_init__(self) -> None:
        require_range(self, "search.", 1, INF, "trials processes")
        require_range(self, "search.", 0, INF, "startup_trials from_epoch")
        require(
            self.trials is not None or self.sampler is Sampler.grid,
            "search.trials=null is for search=grid alone: give a number of trials.",
        )


@dataclass(kw_only=True)
class Config:
    """The whole configuration of a run."""

    model: Any
    data: Any
    optimizer: Any
    scheduler: Any
    pruning: Pruning
    checkpoint: Checkpoint
    logger: dict[str, Any]
    epochs: int
    max_steps: int | None
    batch_size: int
    eval_batch_size: int
    grad_accumulation: int
    label_smoothing: float
    label_noise: float
    seed: int
    device: Device
    precision: Precision
    channels_last: bool
    compile: bool
    deterministic: bool
    threads: int | None
    nonfinite: Nonfinite
    max_skipped: int
    log_every: int
    eval_every_steps: int | None
    test: bool
    report: bool
    resume: str | None
    reproduce: str | None
    accept_drift: bool
    retry_failed: bool
    plugins: list[str]
    search: Search | None
    trial: dict[str, Any]

    def __post_init__(self) -> None:
        require_range(self, "", 1, INF, "epochs max_steps batch_size eval_batch_size grad_accumulation")
        require_range(self, "", 1, INF, "threads log_every eval_every_steps max_skipped")
        require_range(self, "", 0, BELOW_ONE, "label_smoothing label_noise")
        require_range(self, "", 0, 2**31 - 1, "seed")
        require(
            self.batch_size % self.grad_accumulation == 0,
            f"batch_size={self.batch_size} must be a multiple of grad_accumulation={self.grad_accumulation}: "
            "a batch is what one optimizer step sees.",
        )
