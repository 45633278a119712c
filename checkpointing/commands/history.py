"""What became of a checkpoint that is no longer there: from the quarantine, and from the journal."""

import contextlib
from pathlib import Path
from typing import Any

from checkpointing import journal, store
from checkpointing.errors import CheckpointError


def of(path: Path) -> list[dict[str, Any]]:
    """What is known of a file that is gone or in quarantine: time, event, file, reason, text, oldest first.

    Raises CheckpointError when nothing is.
    """
    path = Path(path.parent.resolve()) / path.name
    if path.parent.name == store.QUARANTINE:
        told = [_quarantined(path.with_suffix(".txt"))] if path.with_suffix(".txt").is_file() else []
    else:
        file, root = f"{path.parent.name}/{path.name}", path.parent.parent
        told = [_event(entry) for entry in journal.read(root) if entry.get("file") == file]
        if not any(each["event"] == "quarantined" for each in told):
            notes = sorted((root / store.QUARANTINE).glob(f"*_{file.replace('/', '_')[:-3]}.txt"))
            told += [_quarantined(note) for note in notes]
    if not told:
        raise CheckpointError(f"{path} does not exist, and neither journal nor quarantine knows of it.")
    return told


def _event(entry: dict[str, Any]) -> dict[str, Any]:
    words = {name: entry.get(name) for name in ("time", "event", "file", "reason")}
    reason = words["reason"] or "no reason was written down"
    text = f"{words['event']}  {words['time']}  {words['file']}: {reason}"
    return {**words, "text": text}


def _quarantined(note: Path) -> dict[str, Any]:
    reason = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        reason = note.read_text(encoding="utf-8").strip()
    file, _, reason = reason.partition(": ")
    text = f"quarantined  {file}: {reason} It lies in {note.with_suffix('.pt')}"
    return {"time": None, "event": "quarantined", "file": file, "reason": reason, "text": text}
