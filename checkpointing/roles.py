"""The roles that one moment's checkpoint plays, and what to tell when one is let go or lost."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from peakpoint.base.text import nearest, utc_now
from peakpoint.checkpointing.events import EvalEnd, Event
from peakpoint.checkpointing.metrics import bad_loss
from peakpoint.checkpointing.policy import MILESTONE, TRAINING, Policy, Save
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.naming import Template
from peakpoint.checkpointing.storage.store import Store

log = logging.getLogger("peakpoint")


def roles_of(
    saves: Sequence[tuple[str, Save]],
    last: Event,
    evaluated: EvalEnd | None,
    store: Store,
    git_commit: str | None,
    template: Template | None = None,
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


def warn_lost(roles: Sequence[Manifest]) -> None:
    """A policy has counted these as its best, so their loss must be told."""
    for role in roles:
        if role.tier == MILESTONE:
            log.warning(
                "Lost: %s of epoch %d could not be written and waits no longer (%s).",
                " and ".join(role.tags),
                role.epoch,
                "; ".join(role.reasons),
            )


def warn_unranked(event: EvalEnd) -> None:
    """An evaluation that counts for no policy is told."""
    if (loss := bad_loss(event.metrics)) is not None:
        log.warning(
            "%s is %s at epoch %d: this network is never the best of anything.",
            loss,
            event.metrics[loss],
            event.epoch,
        )


def warn_unmeasured(policies: Mapping[str, Policy], event: EvalEnd) -> None:
    """A metric that a policy goes by and the first evaluation has not is told, with the nearest name."""
    for name, policy in policies.items():
        for metric in policy.watched:
            if metric not in event.metrics:
                hint = nearest(metric, event.metrics) if event.metrics else "; no metric is."
                log.warning(
                    "%s is not measured%s Until it is, the checkpoint policy %s does nothing by it.",
                    metric, hint, name,
                )  # fmt: skip


def farewell(manifest: Manifest, written: list[Manifest]) -> str:
    """For the journal: who let a checkpoint go, why it had been saved, and what came in its place."""
    who = ", ".join(dict.fromkeys(filter(None, manifest.policies))) or "the manager"
    heir = next((m for m in written if set(m.tags) & set(manifest.tags)), written[-1])
    reasons = "; ".join(manifest.reasons)
    return f"no longer kept by {who} (saved for: {reasons}); replaced by {heir.file}"
