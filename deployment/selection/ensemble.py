"""The best networks of a run together: the mean of their probabilities, and the mean of their weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peakpoint.base.errors import CheckpointError
from peakpoint.base.text import utc_now
from peakpoint.checkpointing.metrics import shown
from peakpoint.checkpointing.policies import ranking
from peakpoint.checkpointing.policies.sparsity import SLACK
from peakpoint.checkpointing.policies.top_k import TopK
from peakpoint.checkpointing.policy import order, ranked
from peakpoint.checkpointing.state import objects, serialize
from peakpoint.checkpointing.storage import listing, store
from peakpoint.checkpointing.storage.manifest import AVERAGE, MILESTONE, Manifest, file_contents
from peakpoint.checkpointing.storage.store import Store
from peakpoint.deployment.inference import averaging, evaluate, network, weights
from peakpoint.deployment.selection.intervals import Accuracy, Paired, compare_pairs
from peakpoint.optimizers import scope
from peakpoint.optimizers.parameters import zeros
from peakpoint.trainer.data.pipeline import DataModule
from peakpoint.trainer.evaluation import Classification, autocast_for
from peakpoint.trainer.evaluation import evaluate as evaluated

BEST, PROBABILITIES, WEIGHTS = NAMES = ("best single", "mean of probabilities", "mean of weights")


@dataclass(frozen=True)
class Chosen:
    """Checkpoints of one run, best first by `metric`; `role` is that of the policy, or their tier."""

    root: Path
    manifests: tuple[Manifest, ...]
    metric: str
    role: str


@dataclass(frozen=True)
class Result:
    """Metrics on a split of one of NAMES; `against` compares its right answers with those of the best."""

    metrics: dict[str, float]
    accuracy: Accuracy
    against: Paired | None


@dataclass(frozen=True)
class Ensemble:
    """The networks of chosen checkpoints, best first, and the network of their mean weights, on the device.

    `saved` are the contents of the best one's file; `masks_differ` is whether the networks are pruned
    differently, so that the masks of the best were applied to the mean.
    """

    chosen: Chosen
    networks: tuple[nn.Module, ...]
    average: nn.Module
    saved: Mapping[str, Any]
    config: Mapping[str, Any]
    masks_differ: bool

    @property
    def sparsity(self) -> float:
        """Return the fraction of zeros in the prunable weights of the mean."""
        return zeros(self.average, scope.recorded(self.config)).prunable


def choose(root: Path, k: int | None) -> Chosen:
    """Return up to `k` best checkpoints by the monitored metric, all for None.

    They are those of the policy top_k, or without two of them the milestones, one of each step; with a target
    sparsity only those that reach it. Raises CheckpointError for fewer than two.
    """
    metric, mode, target = network.monitor(root)
    milestones = [
        m
        for m in listing.own(root, listing.manifests(root))
        if m.tier == MILESTONE
        and AVERAGE not in m.tags
        and ranked(m.metrics, metric) is not None
        and (not target or (m.sparsity or 0.0) >= target - SLACK)
    ]
    top = _of_different_steps([m for m in milestones if TopK.tag in m.tags])
    found, role = (top, TopK.tag) if len(top) > 1 else (_of_different_steps(milestones), MILESTONE)
    if len(found) < 2:
        at = f" at its target sparsity {target:g}" if target else ""
        raise CheckpointError(
            f"{root} holds {len(found) or 'no'} checkpoint{'s'[: len(found) != 1]} to average{at}, and "
            "two are needed: train with top_k among checkpoint/policy, which keeps several."
        )
    found.sort(key=lambda m: (-order(m.metrics[metric], mode), m.sequence))
    return Chosen(root, tuple(found[:k]), metric, role)


def _of_different_steps(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Return the newest checkpoint of each step: a resumed run may save a step again."""
    return list({m.global_step: m for m in sorted(manifests, key=lambda m: m.sequence)}.values())


def load(chosen: Chosen, device: torch.device) -> tuple[Ensemble, Mapping[str, Any]]:
    """Return the networks, with the statistics of the mean still to be recalibrated, and `trained_with`.

    Raises CheckpointError for a damaged file, and for networks that are not alike.
    """
    root, (best, *_) = chosen.root, chosen.manifests
    networks, states, masks, first = [], [], [], None
    for manifest in chosen.manifests:
        store.verify(root, manifest)
        saved = serialize.load(root / manifest.file)
        values = weights.of_checkpoint(saved, root / manifest.file)
        built, description = network.with_weights(values, saved)
        first = first or (saved, description)
        if description != first[1]:
            raise CheckpointError(
                f"{best.file} and {manifest.file} hold different networks: only those of one "
                "architecture and task can be averaged."
            )
        networks.append(built)
        states.append(built.state_dict())
        masks.append(weights.masks(saved, values))
    assert first
    differ = any(
        each.keys() != masks[0].keys() or any(not torch.equal(each[n], masks[0][n]) for n in each)
        for each in masks
    )
    average = network.build(first[1], averaging.mean_weights(states, masks[0]), first[0].get("config"))
    for one in (*networks, average):
        objects.move(one, device)
    trained_with = evaluate.trained_with(root, best)
    found = Ensemble(chosen, tuple(networks), average, first[0], trained_with["config"], differ)
    return found, trained_with


def recalibrate(ensemble: Ensemble, data: DataModule) -> None:
    """Take the statistics of batch normalisation of the mean from an epoch of the run's training images."""
    batches = data.train_batches(ensemble.chosen.manifests[0].epoch)
    averaging.recalibrate(ensemble.average, batches, _autocast(ensemble))
    objects.check_finite(ensemble.average)


def _autocast(ensemble: Ensemble) -> Any:
    device = next(ensemble.average.parameters()).device
    return autocast_for(device, bf16=ensemble.config["precision"] == "bf16")


class _Answers(Classification):
    """Metrics that keep the logits and the labels as well."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        super().__init__(num_classes, device)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch, as in any evaluation."""
        super().update(logits, labels)
        self._logits.append(logits)
        self._labels.append(labels)

    @property
    def all(self) -> tuple[Tensor, Tensor]:
        """Return the logits (images, classes) and labels (images,) of every batch."""
        return torch.cat(self._logits), torch.cat(self._labels)


def measure(ensemble: Ensemble, data: DataModule, split: str) -> dict[str, Result]:
    """Return the results on a split by their NAMES, each network evaluated once in the run's arithmetic."""
    answers = []
    for one in (*ensemble.networks, ensemble.average):
        device = next(one.parameters()).device
        if ensemble.config["channels_last"]:
            one.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        kept = _Answers(data.num_classes, device)
        evaluated(one, evaluate.batches(data, split), kept, autocast=_autocast(ensemble))
        answers.append(kept.all)
    *members, (average, labels) = answers
    together = averaging.mean_of_probabilities([logits for logits, _ in members])
    found: dict[str, Result] = {}
    best: list[bool] = []
    for name, logits in zip(NAMES, (members[0][0], together, average), strict=True):
        metrics = Classification(data.num_classes, logits.device)
        metrics.update(logits, labels)
        right = ((logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)).tolist()
        against = compare_pairs(best, right) if best else None
        best = best or right
        found[name] = Result(metrics.compute(), Accuracy.of(right), against)
    return found


def save(ensemble: Ensemble, metrics: Mapping[str, float]) -> Manifest:
    """Write the mean weights as a milestone of the run, which the caller has locked; durable on return.

    It takes the place of its best network in the order of saves, so that the newest checkpoint of the run
    remains a state of its training, and holds no such state itself.
    """
    chosen, saved = ensemble.chosen, ensemble.saved
    if (value := metrics.get(chosen.metric)) is None:
        raise CheckpointError(f"{chosen.metric} is not measured by an evaluation: nothing is saved.")
    best = chosen.manifests[0]
    target = Store(chosen.root, best.run)
    sources = [
        {"file": m.file, "epoch": m.epoch, "global_step": m.global_step, "digest": m.digest,
         chosen.metric: m.metrics[chosen.metric]}
        for m in chosen.manifests
    ]  # fmt: skip
    reason = (
        f"the mean weights of {len(sources)} networks, of steps "
        f"{', '.join(str(m.global_step) for m in chosen.manifests)}: {chosen.metric} "
        f"{shown(chosen.metric, value)}, the best of them {shown(chosen.metric, best.metrics[chosen.metric])}"
    )
    role = replace(
        best,
        file=target.free_name(MILESTONE, ranking.stem(f"{AVERAGE}_{chosen.metric}", value, best.epoch)),
        tags=(AVERAGE,),
        policies=("ensemble",),
        reasons=(reason,),
        metrics=dict(metrics),
        sparsity=ensemble.sparsity,
        created=utc_now(),
        metadata={"sources": sources},
        companions=None,
    )
    state = file_contents(
        role,
        timestamp=role.created,
        model_state_dict=objects.weights(ensemble.average),
        config=saved["config"],
        metadata={**saved["metadata"], "sources": sources},
    )
    state = serialize.SnapshotBuffers().snapshot(state).state
    compress = bool(ensemble.config["checkpoint"].get("compress"))
    (written,) = target.save([role], lambda file: serialize.dump(state, file, compress=compress))
    target.set_pointer(MILESTONE, AVERAGE, written)
    return written
