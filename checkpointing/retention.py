"""What of a run's checkpoints is kept, what the pointers name, and what the rest is replaced by."""

import logging
from collections.abc import Iterator, Mapping, Sequence

from peakpoint.checkpointing.events import Deleted, Fact, Verified
from peakpoint.checkpointing.policy import Policy
from peakpoint.checkpointing.storage import store
from peakpoint.checkpointing.storage.manifest import MILESTONE, TRAINING, Manifest
from peakpoint.checkpointing.storage.store import Store

log = logging.getLogger("peakpoint")


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


def point(target: Store, written: Sequence[Manifest], there: Sequence[Manifest]) -> None:
    """Let the pointers name what was just written, where nothing newer has its role."""
    taken = {tag for m in there if m.sequence > written[-1].sequence for tag in m.tags}
    for manifest in written:
        for tag in {"latest"} if manifest.tier == TRAINING else set(manifest.tags) - taken:
            target.point(manifest.tier, tag, manifest)


def collect(
    target: Store, written: Sequence[Manifest], there: Sequence[Manifest], needed: Mapping[Manifest, str]
) -> Iterator[Fact]:
    """Delete what is not needed any more, once what was just written is seen to be sound; yields the facts.

    Raises CheckpointError, and then deletes nothing, when it is not sound.
    """
    doomed = [m for m in there if m not in needed]
    if not doomed:
        return
    # Roles that are copies, not links, are read each.
    for role in {target.path(m).stat().st_ino: m for m in written}.values():
        store.verify(target.root, role, threads=1)
    yield Verified(written[-1].file)
    for manifest in target.retire({m: _farewell(m, written) for m in doomed}):
        yield Deleted(manifest.file)


def _farewell(manifest: Manifest, written: Sequence[Manifest]) -> str:
    """For the journal: who let a checkpoint go, why it had been saved, and what came in its place."""
    who = ", ".join(dict.fromkeys(filter(None, manifest.policies))) or "the manager"
    heir = next((m for m in written if set(m.tags) & set(manifest.tags)), written[-1])
    reasons = "; ".join(manifest.reasons)
    return f"no longer kept by {who} (saved for: {reasons}); replaced by {heir.file}"


def warn_lost(roles: Sequence[Manifest]) -> None:
    """Warn of milestones that are not written any more: a policy has counted them as its best."""
    for role in roles:
        if role.tier == MILESTONE:
            log.warning(
                "Lost: %s of epoch %d could not be written and waits no longer (%s).",
                " and ".join(role.tags),
                role.epoch,
                "; ".join(role.reasons),
            )
