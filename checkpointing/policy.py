"""When to save, when to stop, and what to keep: the protocol that every policy follows.

A policy looks at events and manifests and answers with values. It never touches a file or a tensor, so each
is tested by a table. Policies are composed by union: the manager asks them all, writes one file for what any
of them wanted, and keeps what any of them keeps.
"""

import logging
import math
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
    """A run as it is planned: its evaluations, its optimizer steps, and the sparsity that it reaches."""

    epochs: int
    steps: int
    sparsity: float


class Policy:
    """Decides on events and says what to keep: derive a dataclass from it, and write `decide`.

    Its fields are the settings; its state is counters only, never settings: on resume the configuration wins.
    """

    @property
    def tags(self) -> Collection[str]:
        """The roles that it gives out. What it saved for others, under earlier settings, is left alone."""
        return ()

    @property
    def watched(self) -> Collection[str]:
        """The names of the metrics that it goes by."""
        return ()

    def build(self) -> "Policy":
        """A policy of these settings, which has seen nothing yet."""
        made: Policy = replace(self)  # type: ignore[type-var]
        return made

    def at_most(self, run: Outlook) -> int | None:  # noqa: ARG002
        """How many checkpoints the policy keeps at once, at most; None where that is not known."""
        return None

    def decide(self, event: Event) -> list[Decision]:
        """What to do about an event; called once for each, in order."""
        raise NotImplementedError

    def keeps(self, manifests: Sequence[Manifest]) -> dict[Manifest, str]:  # noqa: ARG002
        """Which of a run's checkpoints this policy needs, each with the reason."""
        return {}

    def reconcile(self, manifests: Sequence[Manifest]) -> list[str]:  # noqa: ARG002
        """Count only on what a run's checkpoints hold; returns what is lost, in words."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Counters as plain types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take counters back. Raises KeyError for a missing one."""


def roles_of(
    saves: Sequence[tuple[str, Save]],
    last: Event,
    evaluated: EvalEnd | None,
    store: Store,
    git_commit: str | None,
    template: Template | None,
) -> tuple[Manifest, ...]:
    """One manifest for the training tier, whatever the number of tags, and one for each milestone.

    `saves` are what the policies, by name, ask for at the moment that `last` ends; `template` names files.
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
        # So that training/latest.pt is the newest state whatever was saved; the next save replaces it.
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
    # A training checkpoint goes last, so that it is the newest: `latest` is the one to resume from.
    roles.sort(key=lambda role: role.tier == TRAINING)
    # Numbered now: one that is written late, after others failed, does not become the newest by that.
    return tuple(replace(role, sequence=store.number()) for role in roles)


def warn_of_metrics(event: EvalEnd, policies: Mapping[str, Policy]) -> None:
    """Warn of a loss that is not finite, and of metrics that an evaluation lacks and these policies go by."""
    if (loss := bad_loss(event.metrics)) is not None:
        log.warning(
            "%s is %s at epoch %d: this network is never the best of anything.",
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
    """Give each policy that has counters in `state` its own back. Raises CheckpointError for others."""
    for name in policies.keys() & state.keys():
        with restoring(f"policy {name}"):
            policies[name].load_state_dict(state[name])


def ranked(metrics: Mapping[str, float], metric: str) -> float | None:
    """The metric's value, or None when it is missing, NaN or infinite: such a value is never ranked.

    Nor is any value of an evaluation whose loss is not finite: that network is nobody's best.
    """
    value = metrics.get(metric)
    return value if value is not None and math.isfinite(value) and bad_loss(metrics) is None else None


def better(value: float, than: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether `value` beats `than` by more than min_delta; anything beats None."""
    if than is None:
        return True
    return value - than > min_delta if mode == "max" else than - value > min_delta


def order(value: float, mode: str) -> float:
    """A sort key that puts the best value last."""
    return value if mode == "max" else -value
