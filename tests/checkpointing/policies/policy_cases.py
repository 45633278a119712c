"""Short ways to write events, manifests and settings in the tables of the policy tests."""

from peakpoint.checkpointing.events import EvalEnd
from peakpoint.checkpointing.policies.best import Best, Metric
from peakpoint.checkpointing.policies.early_stopping import EarlyStopping
from peakpoint.checkpointing.policies.interval import Interval
from peakpoint.checkpointing.policies.sparsity import Sparsity
from peakpoint.checkpointing.policies.top_k import TopK
from peakpoint.checkpointing.policies.wall_clock import WallClock
from peakpoint.checkpointing.policy import Policy, Save, Stop
from peakpoint.checkpointing.storage.manifest import Manifest

NAN, INF = float("nan"), float("inf")


def evaluation(epoch, accuracy=None, sparsity=0.0, mask_version=0, **metrics):
    """An EvalEnd; accuracy None leaves it out of the metrics."""
    if accuracy is not None:
        metrics["accuracy"] = accuracy
    return EvalEnd(epoch, epoch * 10, metrics, sparsity, mask_version)


def evaluations(*accuracies):
    """One evaluation an epoch, from epoch 1."""
    return [evaluation(epoch, value) for epoch, value in enumerate(accuracies, 1)]


def answers(policy: Policy, events):
    """What a policy decides, by event."""
    return [policy.decide(event) for event in events]


def stems(policy: Policy, events):
    """The file names that a policy asks for, in order."""
    return [d.stem for decisions in answers(policy, events) for d in decisions if isinstance(d, Save)]


def stops(policy: Policy, events):
    """The epochs at which a policy stops."""
    decided = zip(events, answers(policy, events), strict=True)
    return [event.epoch for event, decisions in decided for d in decisions if isinstance(d, Stop)]


def manifest(sequence, *tags, epoch=None, tier="milestone", **metrics):
    """A checkpoint in the manner of the manager."""
    epoch = sequence if epoch is None else epoch
    return Manifest(
        file=f"{tier}/{sequence}.pt",
        tier=tier,
        tags=tags,
        policies=tags,
        reasons=tags,
        sequence=sequence,
        run="run",
        epoch=epoch,
        global_step=epoch * 10,
        metrics=metrics,
    )


def kept(policy: Policy, manifests):
    """The sequence numbers of what a policy keeps."""
    return sorted(m.sequence for m in policy.keeps(manifests))


def interval(epochs=None, steps=None, keep_last=3, keep_every=None):
    return Interval(epochs=epochs, steps=steps, keep_last=keep_last, keep_every=keep_every)


def wall_clock(minutes=60.0, keep_last=3):
    return WallClock(minutes=minutes, keep_last=keep_last)


def best(keep=1, min_delta=0.0, **modes):
    modes = modes or {"accuracy": "max"}
    return Best(
        metrics={name: Metric(mode=mode, min_delta=min_delta) for name, mode in modes.items()}, keep=keep
    )


def top_k(k=3, mode="max", metric="accuracy"):
    return TopK(metric=metric, mode=mode, k=k)


def sparsity(
    *targets, rule="at_least", settled=0, jump_over=True, keep=1, tolerance=0.01, mode="max", min_delta=0.0
):
    return Sparsity(
        metric="accuracy",
        mode=mode,
        min_delta=min_delta,
        targets=list(targets),
        rule=rule,
        tolerance=tolerance,
        jump_over=jump_over,
        settled=settled,
        keep=keep,
    )


def early_stopping(patience=3, min_delta=0.0, mode="max", **bounds):
    return EarlyStopping(metric="accuracy", mode=mode, patience=patience, min_delta=min_delta, **bounds)
