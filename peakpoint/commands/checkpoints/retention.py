"""why and gc: the checkpoints that the policies of a run keep, and those that they release."""

import argparse
import contextlib
from pathlib import Path
from typing import Any

from peakpoint.base import registry
from peakpoint.base.bounded import read_json, read_text
from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing import policies  # noqa: F401 (registers)
from peakpoint.checkpointing.retention import kept
from peakpoint.checkpointing.storage import journal, listing, quarantine, store
from peakpoint.checkpointing.storage.aliases import EVENT as ALIAS
from peakpoint.checkpointing.storage.listing import own
from peakpoint.checkpointing.storage.manifest import PRODUCTION, Manifest
from peakpoint.checkpointing.storage.store import Store
from peakpoint.commands.arguments import DRY_RUN, RUN, path_argument, takes
from peakpoint.commands.common import (
    as_json,
    checkpoint_root,
    locked,
    manifest_of,
    newest_sound,
    print_json,
    run_of,
    verdict,
)
from peakpoint.commands.releases import alias
from peakpoint.deployment.release.publish import EVENT as RELEASED

NOTHING = "no policy keeps it"


def retention(root: Path, run: str) -> dict[Manifest, list[str]]:
    """Return the reasons to keep each checkpoint of a run, oldest first; none where the next save deletes it.

    The policies decide, with the configuration and counters of the newest sound checkpoint, which is loaded
    with torch. Raises CheckpointError when it lacks them.
    """
    from peakpoint.checkpointing.state import serialize

    newest = newest_sound(root, run)
    saved = serialize.load(root / newest.file)
    try:
        settings, counters = saved["config"]["checkpoint"]["policy"], saved["policies"]
        asked = {
            name: registry.make("policy", name, values).build()
            for name, values in settings.items()
            if name in registry.table("policy")
        }
        for name, policy in asked.items():
            if name in counters:
                policy.load_state_dict(counters[name])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CheckpointError(
            f"{root / newest.file} does not say which policies keep what: "
            "the trainer's checkpoints do, those of the library and of other versions do not."
        ) from None
    mine = [m for m in listing.manifests(root) if m.run == run]
    needed = kept(mine, asked, _resumed_from(root))
    every = [policy.keeps(mine) for policy in asked.values()]
    strangers = settings.keys() - asked.keys()
    reasons = {}
    for manifest in mine:
        pins = [needed[manifest]] if manifest in needed else []
        if strange := [p for p in manifest.policies if p in strangers]:
            pins = [f"its policy {strange[0]} is a plugin's, which is not asked here: add plugins=[module]"]
        reasons[manifest] = list(dict.fromkeys([*pins, *(k[manifest] for k in every if manifest in k)]))
    return reasons


def _resumed_from(root: Path) -> str | None:
    """Return the file that the latest attempt resumed from; None when it resumed from none."""
    try:
        source = Path(read_json(run_of(root) / "run.json")["attempts"][-1]["resumed_from"])
    except (CheckpointError, LookupError, TypeError):
        return None
    return f"{source.parent.name}/{source.name}"


@takes(path_argument("path", "FILE", "a .pt file, there or gone"))
def why(options: argparse.Namespace) -> int:
    """Print which policy keeps a checkpoint, or when and why it was deleted."""
    path: Path = options.path
    if path.parent.name == quarantine.QUARANTINE or not path.exists():
        events = history(path)
        if options.json:
            print_json(events)
        else:
            for each in events:
                Console().say(each["text"])
        return 0
    root, manifest = manifest_of(path)
    if manifest.tier == PRODUCTION:
        return alias.why(root, manifest, options.json)
    if wrong := verdict(root, manifest, read_only=False):
        raise CheckpointError(f"{wrong} `peakpoint repair` moves it to quarantine.")
    kept, unknown = None, ""
    try:
        now = retention(root, manifest.run)
        kept = next((why for m, why in now.items() if m.file == manifest.file), [])
    except CheckpointError as error:
        unknown = str(error)
    if options.json:
        print_json({**as_json(root, manifest, True), "kept": kept})
        return 0
    console = Console()
    for tag, reason in zip(manifest.tags, manifest.reasons, strict=True):
        console.say(f"saved  {tag}: {reason}")
    for reason in kept or []:
        console.say(f"kept   {reason}")
    if not kept:
        console.say(
            f"kept   not known: {unknown}" if unknown else "kept   by nothing: the next save deletes it",
        )
    return 0


def history(path: Path) -> list[dict[str, Any]]:
    """Return the events of a file that is gone or in quarantine oldest first, as dicts.

    Raises CheckpointError when there is none.
    """
    path = Path(path.parent.resolve()) / path.name
    if path.parent.name == quarantine.QUARANTINE:
        events = [_quarantined(path.with_suffix(".txt"))] if path.with_suffix(".txt").is_file() else []
    else:
        file, root = f"{path.parent.name}/{path.name}", path.parent.parent
        facts = journal.read(root)
        released = [f.get("version") for f in facts if f.get("event") == RELEASED and f.get("file") == file]
        events = [_event(fact, file) for fact in facts if fact.get("file") == file or _moved(fact, released)]
        if not any(each["event"] == "quarantined" for each in events):
            notes = sorted((root / quarantine.QUARANTINE).glob(f"*_{file.replace('/', '_')[:-3]}.txt"))
            events += [_quarantined(note) for note in notes]
    if not events:
        raise CheckpointError(f"{path} does not exist, and neither journal nor quarantine knows of it.")
    return events


def _moved(fact: dict[str, Any], versions: list[Any]) -> bool:
    """Return whether an alias was moved to or from one of these releases."""
    ends = [fact.get("version"), fact.get("before")]
    return fact.get("event") == ALIAS and any(end in versions for end in ends if end is not None)


def _event(entry: dict[str, Any], file: str) -> dict[str, Any]:
    what = file
    if entry.get("event") == ALIAS:
        moved = f"{entry.get('before') or 'none'} -> {entry.get('version') or 'none'}"
        what = f"{entry.get('alias')}: {moved}, {entry.get('how')}"
    words = {**{name: entry.get(name) for name in ("time", "event", "reason")}, "file": file}
    reason = words["reason"] or "no reason was written down"
    return {**words, "text": f"{words['event']}  {words['time']}  {what}: {reason}"}


def _quarantined(note: Path) -> dict[str, Any]:
    reason = ""
    with contextlib.suppress(CheckpointError):
        reason = read_text(note).strip()
    file, _, reason = reason.partition(": ")
    text = f"quarantined  {file}: {reason} It lies in {note.with_suffix('.pt')}"
    return {"time": None, "event": "quarantined", "file": file, "reason": reason, "text": text}


@takes(RUN, DRY_RUN)
def gc(options: argparse.Namespace) -> int:
    """Delete the checkpoints that no policy keeps, or list them."""
    root = checkpoint_root(options.path)
    found = listing.manifests(root)
    if not found:
        raise CheckpointError(f"{root} holds no checkpoint yet.")
    runs = dict.fromkeys(m.run for m in own(root, found))
    with contextlib.nullcontext() if options.dry_run else locked(root):
        judge = retention if options.dry_run else _collect
        rows = [row for run in runs for row in judge(root, run).items()]
    if options.json:
        print_json([{**as_json(root, m, None), "kept": why} for m, why in rows])
        return 0
    console = Console()
    gone = "would go" if options.dry_run else "deleted"
    for manifest, why in rows:
        fate = "keep" if why else gone
        console.say(f"{fate}  {manifest.file}: {'; '.join(why) or NOTHING}")
    size, count = _freed(rows), sum(not why for _, why in rows)
    console.say(f"{count} of {len(rows)} {gone}, {in_words(size)}")
    return 0


def _collect(root: Path, run: str) -> dict[Manifest, list[str]]:
    """Delete what no policy keeps, once the newest checkpoint is verified; return what `retention` does."""
    reasons = retention(root, run)
    if doomed := [manifest for manifest, why in reasons.items() if not why]:
        store.verify(root, list(reasons)[-1])
        target = Store(root, run)
        for manifest in doomed:
            target.delete(manifest, NOTHING)
    return reasons


def _freed(rows: list[tuple[Manifest, list[str]]]) -> int:
    """Return the bytes that are freed; those that a kept name shares are not."""
    stays = {m.digest for m, why in rows if why}
    return sum({m.digest: m.bytes for m, why in rows if not why and m.digest not in stays}.values())
