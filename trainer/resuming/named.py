"""Whether a file that resume= names can be resumed from, and else what it is and what to do."""

from pathlib import Path

from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing.policy import MILESTONE, TRAINING
from peakpoint.checkpointing.storage.foreign import described
from peakpoint.checkpointing.storage.listing import PRODUCTION
from peakpoint.checkpointing.storage.manifest import read_manifest
from peakpoint.checkpointing.storage.quarantine import QUARANTINE


def check(root: Path, file: Path, go_on: str) -> None:
    """Raise UserError unless `file` is a checkpoint under `root` with its manifest; its bytes are not read.

    `go_on` is the end of a sentence: what to type instead.
    """
    if reason := _reason(root, file, go_on):
        raise UserError(f"{file} {reason}")


def _reason(root: Path, file: Path, go_on: str) -> str | None:
    tier = file.parent.name if file.parent.parent == root else None
    if tier == PRODUCTION:
        return (
            "is of a release, which holds weights alone and not the state of their training, so it cannot "
            f"be resumed: {go_on}, and peakpoint.load_model opens a release."
        )
    if tier == QUARANTINE:
        return f"was set aside as damaged: {go_on}."
    if tier not in (TRAINING, MILESTONE) or file.suffix not in (".pt", ".json"):
        return f"is not a checkpoint: {go_on}, and the files under {root} are those to choose from."
    mark = file.with_suffix(".json")
    if file == mark:
        return f"is a manifest: name the checkpoint beside it, {file.with_suffix('.pt').name}."
    if not mark.exists():
        return f"has no manifest beside it, so it cannot be resumed from: {go_on}.{described(file)}"
    try:
        read_manifest(mark)
    except CheckpointError as error:
        return f"cannot be verified: {error} {go_on}."
    return None
