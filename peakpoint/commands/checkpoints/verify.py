"""verify: check every checkpoint against its manifest."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError, Undamaged, UnregisteredError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage.journal import JOURNAL
from peakpoint.checkpointing.storage.listing import described_by
from peakpoint.checkpointing.storage.manifest import PRODUCTION, Manifest, read_manifest
from peakpoint.commands.arguments import Argument, a_path, takes
from peakpoint.commands.common import (
    as_json,
    checkpoint_roots,
    everything,
    manifest_of,
    no_manifest,
    orphans,
    print_json,
    verdict,
)
from peakpoint.commands.releases.alias import troubles
from peakpoint.deployment.release import signing


@dataclass(frozen=True)
class Verdict:
    """A file of a checkpoint root, its manifest if it can be read, and its problem, None for a sound file.

    `unreadable` means that the problem says nothing of the bytes: this process may not read them, or another
    version wrote the manifest. `signed_by` is set for releases where signatures are checked; `not_run` is the
    reason why the network of a sound release was not run.
    """

    root: Path
    file: str
    manifest: Manifest | None
    problem: str | None
    unreadable: bool = False
    signed_by: str | None = None
    not_run: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the object of the listing with `problem`; values that only a manifest has may be null."""
        facts: dict[str, Any]
        if self.manifest:
            facts = as_json(self.root, self.manifest, self.problem is None)
        else:
            unknown = dict.fromkeys(("epoch", "global_step", "sparsity", "bytes"))
            tier = (self.root / self.file).parent.name
            facts = {"file": self.file, "root": str(self.root), "tier": tier, "tags": [], "reasons": []}
            facts |= {**unknown, "metrics": {}, "verified": False}
        names = ("problem", "unreadable", "signed_by", "not_run")
        return {**facts, **{name: getattr(self, name) for name in names}}


@takes(
    Argument("paths", nargs="+", type=a_path, metavar="PATH", help="a file, a run, or a tree of runs"),
    Argument("--golden", action="store_true", help="run the network of each release, too"),
    Argument(
        "--allowed-signers", type=a_path, metavar="FILE", help="releases must be signed by one of these keys"
    ),
)
def verify(options: argparse.Namespace) -> int:
    """Check files, runs and trees of runs; 1 when any is bad, missing, unreadable or without a manifest.

    --golden rebuilds the network of each release and runs it on its golden inputs; a network that is not
    registered here is reported, and no problem.
    """
    verdicts = [v for path in options.paths for v in _verdicts(path)]
    if options.golden:
        verdicts = [_with_golden(v) for v in verdicts]
    if options.allowed_signers:
        signing.check_allowed(options.allowed_signers)
        verdicts = [_signed(v, options.allowed_signers) for v in verdicts]
    wrong = [v for v in verdicts if v.problem]
    if options.json:
        print_json([v.as_json() for v in verdicts])
        return int(bool(wrong))
    console = Console()
    for v in wrong:
        console.say(f"{'unreadable' if v.unreadable else 'bad'}: {v.problem}")
    for v in verdicts:
        if v.signed_by:
            console.say(f"signed by {v.signed_by}: {v.root / v.file}")
    for v in verdicts:
        if v.not_run:
            console.say(f"not run: {v.root / v.file}: {v.not_run}")
    sound = {(m.digest, m.bytes) for v in verdicts if (m := v.manifest) and not v.problem}
    size = in_words(sum(size for _, size in sound))
    unreadable = sum(v.unreadable for v in wrong)
    checked = f"{len(verdicts) - unreadable} checked, {len(wrong) - unreadable} bad"
    console.say(f"{checked}{f', {unreadable} unreadable' if unreadable else ''}, {size} sound")
    if options.golden:
        console.say(_golden_summary(verdicts))
    return int(bool(wrong))


def _golden_summary(verdicts: list[Verdict]) -> str:
    from peakpoint.deployment.inference import golden

    releases = [v for v in verdicts if v.manifest and v.manifest.tier == PRODUCTION]
    agree = [v for v in releases if v.manifest and golden.has(v.manifest) and not (v.problem or v.not_run)]
    without = [v for v in releases if v.manifest and not golden.has(v.manifest)]
    one = len(agree) == 1
    summary = f"{len(agree)} {'release agrees' if one else 'releases agree'} with {'its' if one else 'their'}"
    has = f", {len(without)} {'has' if len(without) == 1 else 'have'} none" if without else ""
    idle = sum(v.not_run is not None for v in releases)
    return f"{summary} golden outputs{has}" + (f", {idle} not run" if idle else "")


def _with_golden(v: Verdict) -> Verdict:
    """Return the verdict on a release after running its network on its golden inputs."""
    from peakpoint.deployment.inference import golden
    from peakpoint.deployment.release import release  # late: they need torch

    if v.problem or v.manifest is None or not golden.has(v.manifest):
        return v
    try:
        release.verify(v.root, v.manifest, run=True)
    except UnregisteredError as error:
        return replace(v, not_run=f"its network is not registered here. {error}")
    except CheckpointError as error:
        return replace(v, problem=f"{v.root / v.file}: {error}", unreadable=isinstance(error, Undamaged))
    return v


def _signed(v: Verdict, allowed: Path) -> Verdict:
    """Return the verdict on a release that must also be signed."""
    if v.manifest is None or v.problem or v.manifest.tier != PRODUCTION:
        return v
    try:
        return replace(v, signed_by=signing.signer((v.root / v.file).with_suffix(".json"), allowed))
    except CheckpointError as error:
        return replace(v, problem=str(error))


def _verdicts(path: Path) -> Iterator[Verdict]:
    if path.is_dir():
        for root in checkpoint_roots(path):
            try:
                yield from examine(root)
                yield from (Verdict(root, JOURNAL, None, trouble) for trouble in troubles(root))
            except Undamaged as error:  # a folder
                yield Verdict(root, "", None, str(error), unreadable=True)
        return
    file = described_by(path) if path.suffix == ".json" else path
    try:
        root, manifest = manifest_of(file)
    except CheckpointError as error:
        yield Verdict(file.parent, file.name, None, str(error), isinstance(error, Undamaged))
        return
    yield _judged(root, manifest, read_only=True)


def _judged(root: Path, manifest: Manifest, *, read_only: bool) -> Verdict:
    try:
        return Verdict(root, manifest.file, manifest, verdict(root, manifest, read_only=False))
    except Undamaged as error:
        if not read_only:
            raise
        return Verdict(root, manifest.file, manifest, str(error), unreadable=True)


def _is_undamaged(mark: Path) -> bool:
    """Return whether nothing shows that a manifest which cannot be read is damaged."""
    try:
        read_manifest(mark)
    except CheckpointError as error:
        return isinstance(error, Undamaged)
    return False


def examine(root: Path, *, read_only: bool = True) -> Iterator[Verdict]:
    """Yield every checkpoint under a root, oldest first, then files without a readable manifest.

    Raises Undamaged as `everything` does.
    """
    sound: set[tuple[object, ...]] = set()
    found, unreadable = everything(root, read_only=read_only)
    for manifest in found:
        identity, judged = _identity(root, manifest), Verdict(root, manifest.file, manifest, None)
        if identity not in sound:
            judged = _judged(root, manifest, read_only=read_only)
        if not judged.problem:
            sound.add(identity)
        # A run that is being written may have deleted it since it was listed.
        if not judged.problem or (root / manifest.file).with_suffix(".json").exists():
            yield judged
    for file, reason in unreadable:
        yield Verdict(root, file, None, reason, _is_undamaged((root / file).with_suffix(".json")))
    for file in orphans(root):
        yield Verdict(root, file, None, no_manifest(root / file))


def _identity(root: Path, manifest: Manifest) -> tuple[object, ...]:
    """Return a key that is equal for hard links, so that their bytes are read once."""
    if manifest.tier == PRODUCTION:  # has other files, too
        return (manifest.file,)
    try:
        status = (root / manifest.file).stat()
    except OSError:
        return (manifest.file,)
    return (status.st_dev, status.st_ino, manifest.digest, manifest.bytes)
