"""repair: restore a checkpoint folder from its manifests."""

import argparse
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from peakpoint.base import files
from peakpoint.base.bounded import read_json
from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage import aliases, listing, quarantine, store
from peakpoint.checkpointing.storage.listing import own, releases
from peakpoint.checkpointing.storage.manifest import MILESTONE, PRODUCTION, SUFFIXES, TIERS, Manifest
from peakpoint.checkpointing.storage.store import Store
from peakpoint.commands.arguments import DRY_RUN, RUN, takes
from peakpoint.commands.checkpoints.verify import examine
from peakpoint.commands.common import checkpoint_root, locked, print_json, run_of
from peakpoint.commands.releases.alias import troubles
from peakpoint.deployment.release import changelog, publish


@dataclass(frozen=True)
class Repair:
    """A repair: `action` is its name in the output, `apply` carries it out."""

    action: str
    file: str
    reason: str
    apply: Callable[[], None]


@takes(RUN, DRY_RUN)
def repair(options: argparse.Namespace) -> int:
    """Quarantine damaged files, sweep strays, rebuild pointers; 1 when no checkpoint is left."""
    root = checkpoint_root(options.path)
    console = Console(quiet=options.json)
    with contextlib.nullcontext() if options.dry_run else locked(root), publish.settled(root):
        repairs = list(_strays(root))
        if not options.dry_run:
            _sweep(root)
        verdicts = list(examine(root, read_only=False))
        sound = [v.manifest for v in verdicts if v.manifest and not v.problem]
        unfinished = _unfinished(root) if options.dry_run else {}
        for v in verdicts:
            if v.problem:
                aside = functools.partial(quarantine.quarantine, root, v.file, v.problem)
                repairs.append(unfinished.get(v.file) or Repair("quarantine", v.file, v.problem, aside))
        repairs += _pointers(root, sound, {v.file for v in verdicts if v.problem})
        repairs += _unjournaled(root, sound)
        for each in repairs:
            _carry_out(each, console, dry=options.dry_run)
        for each in _changelog(root, options.dry_run):  # last: it describes the repaired folder
            _carry_out(each, console, dry=options.dry_run)
            repairs.append(each)
        doubt = troubles(root)
    if options.json:
        print_json([{"action": r.action, "file": r.file, "reason": r.reason} for r in repairs])
        for reason in doubt:
            Console(stderr=True).say(f"not repaired: {reason}")
    else:
        for reason in doubt:
            console.say(f"not repaired  {reason}")
        done = "to do" if options.dry_run else "done"
        console.say(f"{len(sound)} checkpoints are sound; {len(repairs)} repairs {done}, in {root}")
    return int(bool(doubt) or (bool(verdicts) and not sound))


def _carry_out(repair: Repair, console: Console, *, dry: bool) -> None:
    """Make a repair and say so: what was done is known if a later one fails."""
    if not dry:
        repair.apply()
    console.say(f"{repair.action}  {repair.file}: {repair.reason}")


def _strays(root: Path) -> Iterator[Repair]:
    """Yield the half-written files of dead writers."""
    folders = {run_of(root), root, *(p for p in root.rglob("*") if p.is_dir())}
    for folder in sorted(folders):
        for path in sorted(folder.glob(f"{files.STAGED_PREFIX}*")):
            if files.abandoned(path):
                remove = functools.partial(path.unlink, missing_ok=True)
                yield Repair("sweep", os.path.relpath(path, root), "its writer is dead", remove)


def _unfinished(root: Path) -> dict[str, Repair]:
    """Return what the sweep of a store would remove: files of interrupted saves and deletions."""
    runs, found = {m.run for m in listing.manifests(root)}, {}
    for claim in root.glob(f"*/{files.STAGED_PREFIX}*{store.CLAIM}"):
        with contextlib.suppress(CheckpointError, TypeError, KeyError):
            raw = read_json(claim)
            file = f"{claim.parent.name}/{Path(raw['file']).name}"
            if files.abandoned(claim) and raw["run"] in runs:
                reason = "a save or a deletion of it was cut short"
                found[file] = Repair("sweep", file, reason, lambda: None)
    return found


def _sweep(root: Path) -> None:
    """Complete the interrupted saves and deletions of each run, as its next start would."""
    for run in {m.run for m in listing.manifests(root)}:
        Store(root, run)


def _pointers(root: Path, sound: list[Manifest], bad: set[str]) -> Iterator[Repair]:
    """Yield the missing or wrong pointers, then those to be removed."""
    wanted: dict[tuple[str, str], Manifest] = {}
    for manifest in own(root, sound):  # oldest first, so that the newest and the highest win
        for name in manifest.tags if manifest.tier == MILESTONE else ("latest",):
            wanted[manifest.tier, f"{name}{Path(manifest.file).suffix}"] = manifest
        if manifest.tier == PRODUCTION:  # the other suffix is of lower versions
            other = set(SUFFIXES) - {Path(manifest.file).suffix}
            wanted.pop((PRODUCTION, f"latest{other.pop()}"), None)
    last: dict[str, str | None] = {}
    with contextlib.suppress(CheckpointError):  # a line was changed: no pointer follows it
        last = {change.alias: change.version for change in aliases.changes(root)}
    released = {m.tags[0]: m for m in sound if m.tier == PRODUCTION}
    for alias, version in last.items():
        if release := released.get(f"v{version}"):
            wanted[PRODUCTION, f"{alias}{Path(release.file).suffix}"] = release
    for (tier, name), manifest in wanted.items():
        link = root / tier / name
        target = Path(manifest.file).name
        if link.with_suffix(".json").exists() or (link.is_symlink() and str(link.readlink()) == target):
            continue
        was = f"it named {link.readlink()}" if link.is_symlink() else "it was missing"
        point = functools.partial(files.set_link, link, target)
        yield Repair("point", f"{tier}/{link.name}", f"to {target}; {was}", point)
    links = [p for tier in TIERS for end in SUFFIXES for p in (root / tier).glob(f"*{end}") if p.is_symlink()]
    for link in sorted(links):
        tier = link.parent.name
        if (tier, link.name) in wanted or f"{tier}/{link.name}" in bad:  # those go to quarantine
            continue
        if tier == PRODUCTION and last.get(link.stem, "") is None:
            reason = f"it names {link.readlink()}, and {link.stem} names no release"
        elif any((tier, f"{link.stem}{end}") in wanted for end in SUFFIXES):
            reason = f"it names {link.readlink()}, and {link.stem} is another file"
        elif f"{tier}/{link.readlink()}" in bad or not link.exists():
            reason = f"it names {link.readlink()}, which is no checkpoint"
        else:
            continue
        yield Repair("unlink", f"{tier}/{link.name}", reason, functools.partial(link.unlink, missing_ok=True))


def _unjournaled(root: Path, sound: list[Manifest]) -> Iterator[Repair]:
    """Yield releases without a line in the journal, as when their writer was killed before it."""
    missing: list[Manifest] = []
    with contextlib.suppress(CheckpointError):  # a line was changed: nothing is added after it
        missing = publish.unrecorded(root)
    for manifest in missing:
        if manifest.file in {m.file for m in sound}:
            note = functools.partial(publish.record, root, manifest)
            yield Repair("journal", manifest.file, "its release was not written down", note)


def _changelog(root: Path, dry: bool) -> list[Repair]:
    """Write the generated changelog if it is missing or out of date."""
    path = root / changelog.CHANGELOG
    try:
        text = changelog.text(root)
        if changelog.is_current(path, text) or not (releases(root) or path.exists()):
            return []
        was = "it was out of date" if path.exists() else "it was missing"
        if not dry:
            changelog.write(root)
    except CheckpointError:  # of the journal: reported separately
        return []
    return [Repair("write", changelog.CHANGELOG, was, lambda: None)]
