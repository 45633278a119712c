"""The metrics of a classifier over a split; each has a record in checkpointing/metrics.py."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peakpoint.base.disk_space import is_out_of_memory
from peakpoint.base.errors import UserError


class Classification:
    """Metrics of a classifier over the batches of one evaluation.

    Sums stay on the device in float64 and int64: `update` never waits for it, `compute` does once. `count` is
    how many samples there were; with `confusion` their labels and predictions are kept, for `cells`.
    """

    def __init__(self, num_classes: int, device: torch.device, *, confusion: bool = False) -> None:
        self.num_classes = num_classes
        self._k = min(5, num_classes)
        self.count = 0
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._top1 = torch.zeros((), dtype=torch.int64, device=device)
        self._top5 = torch.zeros((), dtype=torch.int64, device=device)
        # By class: samples that have it, samples predicted as it, and both at once.
        self._labelled = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._predicted = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._right = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._pairs: list[Tensor] | None = [] if confusion else None

    @torch.no_grad()
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits (batch, num_classes) of any float type, labels (batch,) int64.

        A sample with a NaN among its logits has no prediction and counts as wrong.
        """
        self.count += len(labels)
        self._loss += F.cross_entropy(logits.float(), labels, reduction="none").sum(dtype=torch.float64)
        top = logits.topk(self._k, dim=1).indices
        hits = (top == labels[:, None]) & ~logits.isnan().any(dim=1, keepdim=True)
        first = hits[:, 0].to(torch.int64)
        self._top1 += first.sum()
        self._top5 += hits.sum()
        self._labelled.index_add_(0, labels, torch.ones_like(labels))
        self._predicted.index_add_(0, top[:, 0], torch.ones_like(labels))
        self._right.index_add_(0, labels, first)
        if self._pairs is not None:
            none = torch.full_like(labels, self.num_classes)
            predicted = torch.where(logits.isnan().any(dim=1), none, top[:, 0])
            self._pairs.append(labels * (self.num_classes + 1) + predicted)

    def cells(self) -> list[list[int]]:
        """Return the confusion matrix as [label, prediction, samples] where there are samples.

        A prediction of `num_classes` stands for none. Raises ValueError without `confusion`.
        """
        if self._pairs is None:
            raise ValueError("The predictions were not kept: ask for the confusion.")
        pairs, counts = torch.cat(self._pairs).unique(return_counts=True)
        width = self.num_classes + 1
        return torch.stack([pairs // width, pairs % width, counts], dim=1).tolist()

    def compute(self) -> dict[str, float]:
        """Return the metrics so far; all but the loss are fractions in [0, 1].

        `loss` is the mean cross-entropy in nats, without label smoothing. `top5_accuracy` counts a label
        among the 5 largest logits, or among all when there are fewer classes. `f1_score` is the mean of the
        classes' F1 over those that occur as a label or a prediction (scikit-learn's average="macro").
        Raises UserError when there was no sample.
        """
        if self.count == 0:
            raise UserError(
                "There is nothing to evaluate: the split holds no image. Enlarge data.val_fraction."
            )
        occurring = self._labelled + self._predicted
        f1 = 2 * self._right.double() / occurring.clamp(min=1)
        f1_score = f1.sum() / (occurring > 0).sum()
        sums = torch.stack([self._loss, self._top1.double(), self._top5.double(), f1_score])
        loss, top1, top5, macro_f1 = sums.tolist()
        return {
            "loss": loss / self.count,
            "accuracy": top1 / self.count,
            "top5_accuracy": top5 / self.count,
            "f1_score": macro_f1,
        }


@contextmanager
def explaining_torch() -> Iterator[None]:
    """Turn short memory and a normalisation over one value into a UserError with its remedy."""
    try:
        yield
    except (ValueError, RuntimeError, MemoryError) as error:
        if str(error).startswith("Expected more than 1"):
            raise UserError(
                f"A normalisation layer has nothing to normalise over: {error}. Use a batch_size of twice "
                "grad_accumulation or more, or larger images."
            ) from None
        if is_out_of_memory(error):
            raise UserError(
                "The network and a batch do not fit in memory: raise grad_accumulation, which cuts a batch "
                "into parts, or lower batch_size and eval_batch_size."
            ) from None
        raise


def check_logits(logits: object, images: int, classes: int) -> None:
    """Raise UserError unless a network's output is logits: floats of shape (images, classes)."""
    if isinstance(logits, Tensor) and logits.shape == (images, classes) and logits.is_floating_point():
        return
    found = f"of type {type(logits).__name__}"
    if isinstance(logits, Tensor):
        found = f"of {str(logits.dtype).removeprefix('torch.')} and shape {tuple(logits.shape)}"
    raise UserError(
        f"The output of the network is {found}, and must be a tensor of floats of shape "
        f"({images}, {classes}), a logit for each image and class: let its forward return that."
    )


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    metrics: Classification,
    *,
    autocast: AbstractContextManager,
    cut_short: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Return the metrics of a model, put into evaluation mode, over `batches`; empty when cut short."""
    model.eval()
    with torch.no_grad():
        for images, labels in batches:
            with autocast:
                logits = model(images)
            check_logits(logits, len(images), metrics.num_classes)
            metrics.update(logits.float(), labels)
            if cut_short():
                return {}
    return metrics.compute()


def autocast_for(device: torch.device, *, bf16: bool) -> AbstractContextManager:
    """Return a context of bfloat16 arithmetic, or one without an effect."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
