"""When to save, when to stop, and what to keep: the protocol that every policy follows.

A policy looks at events and manifests and answers with values. It never touches a file or a tensor, so each
is tested by a table. Policies are composed by union: the manager asks them all, writes one file for what any
of them wanted, and keeps what any of them keeps.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peakpoint.base.errors import restoring
from peakpoint.checkpointing.events import Event
from peakpoint.checkpointing.metrics import bad_loss
from peakpoint.checkpointing.storage.manifest import Manifest

TRAINING = "training"
MILESTONE = "milestone"


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


class PolicySettings:
    """The settings of a policy that has counters of its own."""

    def build(self) -> "Policy":
        """The policy, which has seen nothing yet."""
        raise NotImplementedError

    def at_most(self, run: Outlook) -> int | None:  # noqa: ARG002
        """How many checkpoints the policy keeps at once, at most; None where that is not known."""
        return None


class Policy(PolicySettings):
    """Decides on events and says what to keep: derive from it, and write `decide`.

    Its state is counters only, never settings: on resume the configuration wins. A policy without counters
    can be a dataclass that is registered, and so its own settings.
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
        """The policy, which has seen nothing yet, where it is its own settings."""
        made: Policy = replace(self)  # type: ignore[type-var]
        return made

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


def load_counters(policies: Mapping[str, Policy], state: Mapping[str, Any]) -> None:
    """Give each policy that has counters in `state` its own back. Raises CheckpointError for others."""
    for name in policies.keys() & state.keys():
        with restoring(f"policy {name}"):
            policies[name].load_state_dict(state[name])


def kept(
    manifests: Sequence[Manifest], policies: Mapping[str, Policy], resumed_from: str | None
) -> dict[Manifest, str]:
    """Which of a run's checkpoints, oldest first, are kept, each with the reason; the rest may go.

    Beside what the policies need: the newest, the file that the run was resumed from, and what no policy
    looks after any more.
    """
    needed: dict[Manifest, str] = {}
    for manifest in manifests:
        if manifest.file == resumed_from:
            needed[manifest] = "this run was resumed from it"
        elif (tag := _ownerless(manifest, policies)) is not None:
            needed[manifest] = f"no policy looks after {tag} any more"
    if manifests:
        needed[manifests[-1]] = "the newest"
    for policy in policies.values():
        needed.update(policy.keeps(manifests))
    return needed


def _ownerless(manifest: Manifest, policies: Mapping[str, Policy]) -> str | None:
    """A tag whose policy is no longer configured, or no longer has such a role; None when there is none."""
    for name, tag in zip(manifest.policies, manifest.tags, strict=True):
        if name and (name not in policies or tag not in policies[name].tags):
            return tag
    return None


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


def safe_name(text: str) -> str:
    """`text` as part of a file name: anything but letters, digits, `.`, `_` and `-` becomes `_`."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
