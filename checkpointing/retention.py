"""Retention: which checkpoints of a run are kept, which are deleted, and which the pointers name."""

import logging
from collections.abc import Iterator, Mapping, Sequence

from peakpoint.checkpointing.events import Deleted, Fact, Verified
from peakpoint.checkpointing.policy import Policy
from peakpoint.checkpointing.storage import store
from peakpoint.checkpointing.storage.manifest import AVERAGE, MILESTONE, TRAINING, Manifest
from peakpoint.checkpointing.storage.store import Store

log = logging.getLogger("peakpoint")


def kept(
    manifests: Sequence[Manifest], policies: Mapping[str, Policy], resumed_from: str | None
) -> dict[Manifest, str]:
    """Return the checkpoints to keep, each with the reason; `manifests` are those of the run, oldest first.

    They are those that the policies need, the newest, the file that the run was resumed from, averages of
    weights, and those whose policy is no longer configured.
    """
    needed: dict[Manifest, str] = {}
    for manifest in manifests:
        if manifest.file == resumed_from:
            needed[manifest] = "this run was resumed from it"
        elif AVERAGE in manifest.tags:
            needed[manifest] = "an average of weights, which no training replaces"
        elif (tag := _ownerless(manifest, policies)) is not None:
            needed[manifest] = f"no policy looks after {tag} any more"
    if manifests:
        needed[manifests[-1]] = "the newest"
    for policy in policies.values():
        needed.update(policy.keeps(manifests))
    return needed


def _ownerless(manifest: Manifest, policies: Mapping[str, Policy]) -> str | None:
    """Return a tag whose policy is no longer configured, or no longer has such a role; None without one."""
    for name, tag in zip(manifest.policies, manifest.tags, strict=True):
        if name and (name not in policies or tag not in policies[name].tags):
            return tag
    return None


def set_pointers(target: Store, written: Sequence[Manifest], there: Sequence[Manifest]) -> None:
    """Make the pointers name what was just written, unless a newer checkpoint has the role."""
    taken = {tag for m in there if m.sequence > written[-1].sequence for tag in m.tags}
    for manifest in written:
        for tag in {"latest"} if manifest.tier == TRAINING else set(manifest.tags) - taken:
            target.set_pointer(manifest.tier, tag, manifest)


def delete_unneeded(
    target: Store, written: Sequence[Manifest], there: Sequence[Manifest], needed: Mapping[Manifest, str]
) -> Iterator[Fact]:
    """Delete the checkpoints that are not needed, once those just written are verified; yields the facts.

    Raises CheckpointError, and then deletes nothing, when one is damaged.
    """
    doomed = [m for m in there if m not in needed]
    if not doomed:
        return
    # Links share their bytes, which are read once; copies are each read.
    for role in {target.path(m).stat().st_ino: m for m in written}.values():
        store.verify(target.root, role, threads=1)
    yield Verified(written[-1].file)
    for manifest in target.delete_each({m: _reason_of_deletion(m, written) for m in doomed}):
        yield Deleted(manifest.file)


def _reason_of_deletion(manifest: Manifest, written: Sequence[Manifest]) -> str:
    """Return, for the journal, who let a checkpoint go, why it had been saved, and what replaces it."""
    who = ", ".join(dict.fromkeys(filter(None, manifest.policies))) or "the manager"
    heir = next((m for m in written if set(m.tags) & set(manifest.tags)), written[-1])
    reasons = "; ".join(manifest.reasons)
    return f"no longer kept by {who} (saved for: {reasons}); replaced by {heir.file}"


def warn_lost(roles: Sequence[Manifest]) -> None:
    """Warn of milestones that will not be written although a policy has counted them as its best."""
    for role in roles:
        if role.tier == MILESTONE:
            log.warning(
                "%s of epoch %d could not be written and is lost (%s): free some disk space for the next.",
                " and ".join(role.tags),
                role.epoch,
                "; ".join(role.reasons),
            )
