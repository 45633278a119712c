"""resume=URL: a run is downloaded from its mirror, and then resumed as any other."""

from pathlib import Path

from peakpoint.base import given
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.remote import download
from peakpoint.checkpointing.remote.layout import read_index
from peakpoint.checkpointing.storage import listing, locate
from peakpoint.checkpointing.storage.manifest import MILESTONE, TRAINING
from peakpoint.checkpointing.storage.naming import safe_name
from peakpoint.trainer.config.hydra_overrides import quote, split, unquote
from peakpoint.trainer.reports.run_record import RUN


def fetched(argv: list[str], url: str) -> list[str]:
    """Download a run to hydra.run.dir, or below outputs/; returns the command line that resumes it.

    A directory of an earlier download is used again, and its newer checkpoints stay.
    Raises UserError or CheckpointError.
    """
    source = download.find(url, "resume")
    named = [unquote(value) for key, value in map(split, argv) if key == "hydra.run.dir"]
    if named and "${" in named[-1]:
        raise UserError(f"hydra.run.dir={named[-1]}: with resume=URL name a directory as it is.")
    here = f"outputs/{safe_name(source.name)}-{source.run[:8]}"
    directory = given.path(named[-1] if named else here)
    if source.remote.folder:
        listing.check_apart(source.remote.folder, directory)
    file = _pulled(source, directory)
    if not (directory / RUN).is_file():
        raise UserError(
            f"resume={source.remote.url}: no {RUN} is with these checkpoints, so the trainer cannot resume "
            f"them. They are in {directory / 'checkpoints'}."
        )
    value = quote(str(directory / "checkpoints" / file if file else directory))
    rest = [a for a in argv if split(a)[0] not in ("resume", "hydra.run.dir")]
    flags = [a for a in rest if split(a)[0] is None]
    return [*flags, f"resume={value}", *(a for a in rest if a not in flags)]


def _pulled(source: download.Source, directory: Path) -> str | None:
    """Download what a resume needs; returns the checkpoint that the URL names, or None for a run."""
    if source.file is None and download.run_in(directory) == source.run and (directory / RUN).is_file():
        index, _ = read_index(source.remote, source.remote.find("checkpoints"))
        mine = locate.of_run(listing.manifests(directory / "checkpoints"), source.run)
        newest = max((m.sequence for m in mine), default=0)
        if newest >= max((m.sequence for m in index.values()), default=0):
            return None
    try:
        done = download.pull(source, directory, tiers=(TRAINING, MILESTONE))
    except CheckpointError as error:
        raise type(error)(f"resume={source.remote.url}: {error}") from None
    console = Console()
    for reason in done.refused:
        console.say(f"not pulled: {reason}")
    console.say(f"pulled {len(done.copied)} checkpoints from {source.remote.url} to {directory}")
    return (done.copied + done.there)[0] if source.file else None
