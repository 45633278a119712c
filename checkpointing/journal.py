"""What happened to the checkpoints of a folder, one JSON line each, only ever appended to.

For people, and for `why` after a file is gone. No code decides anything by it, so a line that cannot be
written or read is passed over.
"""

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

JOURNAL = "metadata/journal.jsonl"


def append(root: Path, event: str, file: str, reason: str, sequence: int | None = None) -> None:
    """Add a line; a failure to do so is nobody's problem."""
    fact = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, "file": file}
    line = json.dumps({**fact, "sequence": sequence, "reason": reason}).encode() + b"\n"
    path = root / JOURNAL
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":  # the last writer was cut short
                line = b"\n" + line
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def read(root: Path) -> list[dict[str, Any]]:
    """The facts written down under a checkpoint root, oldest first.

    Each has `time` (UTC, ISO 8601), `event` (saved, deleted, quarantined, resumed, swept), `file` (relative
    to the root), `sequence` (of the checkpoint, or None) and `reason`. Torn and foreign lines are left out.
    """
    try:
        text = (root / JOURNAL).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            fact = json.loads(line)
            if isinstance(fact, dict):
                found.append(fact)
    return found
