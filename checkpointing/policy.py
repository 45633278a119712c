"""When to save, when to stop, and what to keep: the protocol that every policy follows.

A policy reads events and manifests and answers with values. It touches no file and no tensor, so a table of
cases tests it. Policies are composed by union: the manager asks them all, writes one file when any of them
asks for a save, and keeps what any of them keeps.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peakpoint.base.errors import restoring
from peakpoint.base.text import nearest, utc_now
from peakpoint.checkpointing.events import EvalEnd, Event
from peakpoint.checkpointing.metrics import bad_loss
from peakpoint.checkpointing.storage.manifest import TRAINING, Manifest
from peakpoint.checkpointing.storage.naming import Template
from peakpoint.checkpointing.storage.store import Store

log = logging.getLogger("peakpoint")


@dataclass(frozen=True, slots=True)
class Save:
    """Save the state of this moment.

    `tag` is the role that the checkpoint plays, `reason` a sentence for people. In the milestone tier `stem`
    is the file's name without its suffix, and the pointer `<tag>.pt` names the newest; in the training tier
    the manager names the file by epoch and step.
    """

    tag: str
    reason: str
    tier: str = TRAINING
    stem: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the run after this moment."""

    reason: str


Decision = Save | Stop


@dataclass(frozen=True, slots=True)
class Outlook:
    """A run as it is planned: epochs, optimizer steps, evaluations, and the sparsity that it reaches.

    `ramp_end` is the step at which pruning ends, 0 for dense training.
    """

    epochs: int
    steps: int
    evaluations: int
    sparsity: float
    ramp_end: int = 0


class Policy(ABC):
    """Decides on events and says what to keep: derive a dataclass from it, and write `decide`.

    Its fields are the settings; its state is counters only, never settings: on resume the configuration wins.
    """

    @property
    def tags(self) -> Collection[str]:
        """Return the roles that it gives; checkpoints that it saved in other roles before are left alone."""
        return ()

    @property
    def watched(self) -> Collection[str]:
        """Return the names of the metrics that it uses."""
        return ()

    def build(self) -> "Policy":
        """Return a policy with these settings and no history."""
        made: Policy = replace(self)  # type: ignore[type-var]
        return made

    def prepare(self, run: Outlook) -> None:  # noqa: B027
        """Learn what is planned; called once, before the first event, in runs of the trainer."""

    @property
    def derived(self) -> dict[str, Any]:
        """Return what it has from `prepare` and not from its settings, by name, for the record."""
        return {}

    def at_most(self, run: Outlook) -> int | None:  # noqa: ARG002
        """Return the largest number of checkpoints kept at once, None where it is not known."""
        return None

    @abstractmethod
    def decide(self, event: Event) -> list[Decision]:
        """Return what to do about an event; called once for each, in order."""

    def keeps(self, manifests: Sequence[Manifest]) -> dict[Manifest, str]:  # noqa: ARG002
        """Return the checkpoints of a run that this policy needs, each with the reason."""
        return {}

    def reconcile(self, manifests: Sequence[Manifest]) -> list[str]:  # noqa: ARG002
        """Count only on values that a run's checkpoints hold; returns a clause for each one that is lost."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Restore the counters. Raises KeyError for a missing one."""


def roles_of(
    saves: Sequence[tuple[str, Save]],
    last: Event,
    evaluated: EvalEnd | None,
    store: Store,
    git_commit: str | None,
    template: Template | None,
) -> tuple[Manifest, ...]:
    """Return one manifest for the training tier, whatever the number of tags, and one for each milestone.

    `saves` are the requests of the policies, by name, at the moment that ends with `last`; `template` names
    the files, None for epoch and step. The one of the training tier is the last.
    """
    base = Manifest(
        file="",
        tier=TRAINING,
        tags=(),
        policies=(),
        reasons=(),
        sequence=0,
        run=store.run,
        epoch=last.epoch,
        global_step=last.step,
        metrics=dict(evaluated.metrics) if evaluated else {},
        sparsity=evaluated.sparsity if evaluated else None,
        created=utc_now(),
        git_commit=git_commit,
    )
    if not any(save.tier == TRAINING for _, save in saves):
        # A milestone alone gets a training role too, so that training/latest.pt is always the newest state.
        saves = [*saves, ("", Save("latest", "the newest state"))]
    by_stem: dict[tuple[str, str], list[tuple[str, Save]]] = {}
    for name, save in saves:
        stem = save.stem or f"checkpoint_epoch_{last.epoch:04d}_step_{last.step:08d}"
        if template is not None:
            stem = template.stem(last.epoch, last.step, base.sparsity, base.metrics)
        by_stem.setdefault((save.tier, stem), []).append((name, save))
    roles = [
        replace(
            base,
            tier=tier,
            file=store.free_name(tier, stem),
            tags=tuple(save.tag for _, save in group),
            policies=tuple(name for name, _ in group),
            reasons=tuple(save.reason for _, save in group),
        )
        for (tier, stem), group in by_stem.items()
    ]
    # The training role is last, and so has the highest sequence: a resume takes the newest.
    roles.sort(key=lambda role: role.tier == TRAINING)
    # Numbered now, so that a checkpoint that is retried and written late does not count as the newest.
    return tuple(replace(role, sequence=store.next_sequence()) for role in roles)


def warn_of_metrics(event: EvalEnd, policies: Mapping[str, Policy]) -> None:
    """Warn of a loss that is not finite, and of metrics that these policies use and the evaluation lacks."""
    if (loss := bad_loss(event.metrics)) is not None:
        log.warning(
            "%s is %s at epoch %d: this network cannot be a best.",
            loss,
            event.metrics[loss],
            event.epoch,
        )
    for name, policy in policies.items():
        for metric in policy.watched:
            if metric not in event.metrics:
                hint = nearest(metric, event.metrics) if event.metrics else "; no metric is."
                log.warning(
                    "%s is not measured%s Until it is, the checkpoint policy %s does nothing by it.",
                    metric, hint, name,
                )  # fmt: skip


def load_counters(policies: Mapping[str, Policy], state: Mapping[str, Any]) -> None:
    """Restore the counters of each policy that has some in `state`. Raises CheckpointError for a bad one."""
    for name in policies.keys() & state.keys():
        with restoring(f"policy {name}"):
            policies[name].load_state_dict(state[name])


def ranked(metrics: Mapping[str, float], metric: str) -> float | None:
    """Return the metric's value, None when it is not to be ranked: missing, NaN or infinite.

    Nor is any value of an evaluation whose loss is not finite: that network is never the best.
    """
    value = metrics.get(metric)
    return value if value is not None and math.isfinite(value) and bad_loss(metrics) is None else None


def better(value: float, than: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Return whether `value` beats `than` by more than min_delta; any value beats None."""
    if than is None:
        return True
    return value - than > min_delta if mode == "max" else than - value > min_delta


def order(value: float, mode: str) -> float:
    """Return a sort key that puts the best value last."""
    return value if mode == "max" else -value
