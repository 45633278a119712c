"""What became of a checkpoint that is no longer there: from the quarantine, and from the journal."""

import contextlib
from pathlib import Path
from typing import Any

from peakpoint.base.bounded import read_text
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import journal, quarantine
from peakpoint.checkpointing.storage.aliases import EVENT as ALIAS
from peakpoint.deployment.release.publish import EVENT as RELEASED


def of(path: Path) -> list[dict[str, Any]]:
    """What is known of a file that is gone or in quarantine: time, event, file, reason, text, oldest first.

    Raises CheckpointError when nothing is.
    """
    path = Path(path.parent.resolve()) / path.name
    if path.parent.name == quarantine.QUARANTINE:
        told = [_quarantined(path.with_suffix(".txt"))] if path.with_suffix(".txt").is_file() else []
    else:
        file, root = f"{path.parent.name}/{path.name}", path.parent.parent
        facts = journal.read(root)
        released = [f.get("version") for f in facts if f.get("event") == RELEASED and f.get("file") == file]
        told = [_event(fact, file) for fact in facts if fact.get("file") == file or _moved(fact, released)]
        if not any(each["event"] == "quarantined" for each in told):
            notes = sorted((root / quarantine.QUARANTINE).glob(f"*_{file.replace('/', '_')[:-3]}.txt"))
            told += [_quarantined(note) for note in notes]
    if not told:
        raise CheckpointError(f"{path} does not exist, and neither journal nor quarantine knows of it.")
    return told


def _moved(fact: dict[str, Any], versions: list[Any]) -> bool:
    """Whether an alias came to one of these releases, or left it."""
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
