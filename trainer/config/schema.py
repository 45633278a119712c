"""What can be configured: names, types and ranges. The values are in conf/, and nowhere else.

Each group of conf/ has its dataclass here, registered with Hydra under `schema/`, so that a wrong key or
type fails while the configuration is composed. Registration and the rules across fields are in check.py.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from peakpoint.base.errors import UserError


class Device(Enum):
    """Where to train; `auto` takes CUDA when there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """Arithmetic of the forward pass; the weights are always float32."""

    fp32 = "fp32"
    bf16 = "bf16"


class Nonfinite(Enum):
    """What to do when a loss is NaN or infinite; `skip` looks at the gradients as well."""

    stop = "stop"
    skip = "skip"


class Stem(Enum):
    """First layers of a ResNet: 3x3 for small images, 7x7 with pooling for large ones."""

    auto = "auto"
    cifar = "cifar"
    imagenet = "imagenet"


def require(condition: bool, sentence: str) -> None:
    """Raise UserError with `sentence` unless the condition holds."""
    if not condition:
        raise UserError(sentence)


def require_range(node: object, group: str, low: float, high: float, names: str) -> None:
    """Each attribute of `node` in the space-separated `names` is None or within [low, high]."""
    for name in names.split():
        value = getattr(node, name)
        if value is not None and not (low <= value <= high and value < INF):
            bound = f"at least {low:g}" if high == INF else f"between {low:g} and {high:g}"
            raise UserError(f"{group}{name}={value} is out of range: it must be {bound}.")


INF = float("inf")
BELOW_ONE = 1 - 1e-9


TRAIN, TEST = "train", "test"
"""The splits of a data set."""


@dataclass(kw_only=True)
class ResNet:
    """ResNet-18 and -50 (torchvision's blocks) and ResNet-20 (He et al. 2015, section 4.2)."""

    name: str
    stem: Stem
    dropout: float

    def __post_init__(self) -> None:
        require_range(self, "model.", 0, BELOW_ONE, "dropout")


@dataclass(kw_only=True)
class ResNet20(ResNet):
    """ResNet-20, made for small images alone."""

    def __post_init__(self) -> None:
        ResNet.__post_init__(self)
        require(
            self.stem is not Stem.imagenet,
            "model.stem=imagenet: resnet20 has none for large images. Use auto or cifar, or a larger ResNet.",
        )


@dataclass(kw_only=True)
class LeNet:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling."""

    name: str
    dropout: float

    def __post_init__(self) -> None:
        require_range(self, "model.", 0, BELOW_ONE, "dropout")


@dataclass(kw_only=True)
class Data:
    """A dataset, its validation split, and how a training batch is augmented."""

    name: str
    root: str
    val_fraction: float
    image_size: int | None
    crop_padding: int
    flip: bool
    cutout: int

    def __post_init__(self) -> None:
        require_range(self, "data.", 1e-9, 0.9, "val_fraction")
        require_range(self, "data.", 1, INF, "image_size")
        require_range(self, "data.", 0, INF, "crop_padding cutout")


@dataclass(kw_only=True)
class Synthetic(Data):
    """Images made from the seed: a pattern for each class, and noise."""

    train_size: int
    test_size: int
    num_classes: int
    channels: int
    native_size: int

    def __post_init__(self) -> None:
        Data.__post_init__(self)
        require_range(self, "data.", 1, INF, "train_size test_size channels native_size")
        require_range(self, "data.", 2, INF, "num_classes")


@dataclass(kw_only=True)
class _Optimizer:
    name: str
    lr: float
    weight_decay: float
    clip_norm: float | None

    def __post_init__(self) -> None:
        require_range(self, "optimizer.", 0, INF, "lr weight_decay")
        require_range(self, "optimizer.", 1e-12, INF, "clip_norm")


@dataclass(kw_only=True)
class Adam(_Optimizer):
    """Adam (Kingma & Ba 2014); weight decay is added to the gradient."""

    beta1: float
    beta2: float
    eps: float
    amsgrad: bool

    def __post_init__(self) -> None:
        _Optimizer.__post_init__(self)
        require_range(self, "optimizer.", 0, BELOW_ONE, "beta1 beta2")
        require_range(self, "optimizer.", 0, INF, "eps")


@dataclass(kw_only=True)
class AdamW(Adam):
    """AdamW (Loshchilov & Hutter 2017); weight decay is applied to the weights."""


@dataclass(kw_only=True)
class AdamWPrune(AdamW):
    """AdamW whose own state decides what to prune; brings `pruning=state`."""

    variant: str


@dataclass(kw_only=True)
class AdamWSPAM(AdamW):
    """AdamW with spike-aware clipping and momentum reset (Huang et al. 2025)."""

    spike_threshold: float
    reset_interval: int
    reset_warmup: int

    def __post_init__(self) -> None:
        AdamW.__post_init__(self)
        require_range(self, "optimizer.", 1, INF, "spike_threshold")
        require_range(self, "optimizer.", 0, INF, "reset_interval reset_warmup")


@dataclass(kw_only=True)
class SGD(_Optimizer):
    """Stochastic gradient descent with momentum."""

    momentum: float
    nesterov: bool

    def __post_init__(self) -> None:
        _Optimizer.__post_init__(self)
        require_range(self, "optimizer.", 0, BELOW_ONE, "momentum")
        require(
            not (self.nesterov and self.momentum == 0),
            "optimizer.nesterov=true needs optimizer.momentum above 0.",
        )


@dataclass(kw_only=True)
class Scheduler:
    """Learning rate over the run, as a factor of optimizer.lr; warm-up counts in epochs."""

    name: str
    warmup_epochs: float

    def __post_init__(self) -> None:
        require_range(self, "scheduler.", 0, INF, "warmup_epochs")


@dataclass(kw_only=True)
class Cosine(Scheduler):
    """Half a cosine from the peak to `final_factor` of it."""

    final_factor: float

    def __post_init__(self) -> None:
        Scheduler.__post_init__(self)
        require_range(self, "scheduler.", 0, 1, "final_factor")


@dataclass(kw_only=True)
class MultiStep(Scheduler):
    """Multiplied by `gamma` at each milestone, which is a fraction of the run."""

    milestones: list[float]
    gamma: float

    def __post_init__(self) -> None:
        Scheduler.__post_init__(self)
        require_range(self, "scheduler.", 0, 1, "gamma")
        require(
            self.milestones == sorted(self.milestones) and all(0 <= m <= 1 for m in self.milestones),
            f"scheduler.milestones={self.milestones} must be rising fractions of the run, from 0 to 1.",
        )


@dataclass(kw_only=True)
class OneCycle(Scheduler):
    """Rises to the peak over `peak_fraction` of the run, then falls to `final_factor` (Smith 2018)."""

    peak_fraction: float
    initial_factor: float
    final_factor: float

    def __post_init__(self) -> None:
        Scheduler.__post_init__(self)
        require_range(self, "scheduler.", 0, 1, "peak_fraction initial_factor final_factor")


DENSE = ("none", "regrow")
"""Methods that prune nothing more; `regrow` lets go of what a resumed run has pruned."""


@dataclass(kw_only=True)
class Pruning:
    """Which weights go, how many, and when. `target` 0 trains dense."""

    method: str
    variant: str
    target: float
    allocation: str
    schedule: str
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
        require_range(self, "pruning.", 0, 1, "start_fraction end_fraction")
        for end in ("start", "end"):
            require(
                getattr(self, f"{end}_step") is None or getattr(self, f"{end}_epoch") is None,
                f"pruning.{end}_step and pruning.{end}_epoch are both given: keep one of them.",
            )


@dataclass(kw_only=True)
class Monitor:
    """The metric that says which epoch is the peak."""

    metric: str
    mode: str

    def __post_init__(self) -> None:
        require(self.mode in ("max", "min"), f"checkpoint.monitor.mode={self.mode} must be max or min.")


@dataclass(kw_only=True)
class Checkpoint:
    """What the checkpoint policies share, and the policies themselves by name."""

    interval: int | None
    interval_steps: int | None
    interval_minutes: float | None
    keep_last: int
    background: bool
    compress: bool
    when_busy: str
    on_error: str
    name: str | None
    mirror: str | None
    mirror_what: list[str]
    mirror_keep: int | None
    mirror_queue: int
    mirror_wait_s: float
    mirror_timeout_s: float
    monitor: Monitor
    policy: dict[str, Any]

    def __post_init__(self) -> None:
        require_range(
            self, "checkpoint.", 1, INF, "interval interval_steps keep_last mirror_keep mirror_queue"
        )
        require_range(self, "checkpoint.", 1e-9, INF, "interval_minutes mirror_timeout_s")
        require_range(self, "checkpoint.", 0, INF, "mirror_wait_s")
        require(
            self.when_busy in ("wait", "skip"),
            f"checkpoint.when_busy={self.when_busy} must be wait or skip.",
        )
        require(
            self.on_error in ("warn", "stop"), f"checkpoint.on_error={self.on_error} must be warn or stop."
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
    epochs: int
    max_steps: int | None
    batch_size: int
    eval_batch_size: int
    grad_accumulation: int
    label_smoothing: float
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
    test: bool
    tensorboard: bool
    plot: bool
    resume: str | None
    accept_drift: bool
    plugins: list[str]

    def __post_init__(self) -> None:
        require_range(self, "", 1, INF, "epochs max_steps batch_size eval_batch_size grad_accumulation")
        require_range(self, "", 1, INF, "threads log_every max_skipped")
        require_range(self, "", 0, BELOW_ONE, "label_smoothing")
        require_range(self, "", 0, 2**31 - 1, "seed")
        require(
            self.batch_size % self.grad_accumulation == 0,
            f"batch_size={self.batch_size} must be a multiple of grad_accumulation={self.grad_accumulation}: "
            "a batch is what one optimizer step sees.",
        )
