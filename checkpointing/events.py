"""Events of a run as values. Each is published only once it is true::

    for epoch in 1, 2, ...:
        for batch in epoch:
            forward, backward, optimizer step
            StepEnd                      after each optimizer step; the last of an epoch with what follows
            EvalEnd                      with its StepEnd, every eval_every_steps within an epoch
        evaluate on the validation split
        EvalEnd                          with the metrics and the measured sparsity
        EpochEnd                         at the same moment as EvalEnd: all three share one checkpoint
    RunEnd                               once, when the last epoch is done or a policy asked to stop
    Interrupted                          instead of RunEnd: a signal, after the current step

    Saved, Skipped, Verified, Deleted    from the checkpoint manager, after the fact

`epoch` counts from 1, or as the framework of an adapter shows it; `step` is the number of optimizer steps
taken since the run began.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepEnd:
    """An optimizer step was taken."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True)
class EvalEnd:
    """The validation split was evaluated.

    `sparsity` is the measured fraction of zeros among the prunable weights, `overall` that among all
    parameters where it is known; `mask_version` grows by one whenever the pruning mask changes, so equal
    versions mean an unchanged mask. `digests` are those of the `weights`, with their masks, and of the
    `batches` of the epoch so far; None where nobody takes them. `layers` has the share of zeros of each
    prunable weight by its name, None where nothing is pruned.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]
    sparsity: float
    mask_version: int
    overall: float | None = None
    digests: Mapping[str, str] | None = None
    layers: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class EpochEnd:
    """All batches of an epoch were used. `done` is the number of whole epochs where epochs count from 0."""

    epoch: int
    step: int
    done: int | None = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A signal stopped the run; the state is saved so that it can be resumed."""

    epoch: int
    step: int
    signal: int


@dataclass(frozen=True, slots=True)
class RunEnd:
    """Training is over."""

    epoch: int
    step: int
    reason: str


Event = StepEnd | EvalEnd | EpochEnd | Interrupted | RunEnd


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint and its manifest are durable on disk; `stall_s` is what training waited for it."""

    file: str
    tags: tuple[str, ...]
    bytes: int
    stall_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A save in these roles was left out, because the save before it was still being written."""

    epoch: int
    step: int
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """The bytes of a checkpoint match the digest in its manifest."""

    file: str


@dataclass(frozen=True, slots=True)
class Deleted:
    """Retention removed a checkpoint that nothing keeps any more."""

    file: str


Fact = Saved | Skipped | Verified | Deleted
