"""What happened to the checkpoints of a folder, one JSON line each, only ever appended to.

Most lines are for people, and for `why` after a file is gone: `append` passes over a disk that refuses, and
no code decides anything by them. What is decided by hand, such as which release is the champion, has no other
record: `record` makes such a line durable and gives it a digest, and `vouched` reads those alone.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from checkpointing.errors import CheckpointError
from checkpointing.files import fsync_directory
from checkpointing.room import failure

JOURNAL = "metadata/journal.jsonl"
CHECK = "check"


def append(root: Path, event: str, file: str, reason: str, sequence: int | None = None) -> None:
    """Add a line; a failure to do so is nobody's problem."""
    fact = {"time": _now(), "event": event, "file": file, "sequence": sequence, "reason": reason}
    with contextlib.suppress(OSError):
        _write(root, json.dumps(fact), durable=False)


def record(root: Path, event: str, facts: Mapping[str, Any]) -> None:
    """Add a line that code relies on; durable on return. Raises SaveFailed when the disk refuses."""
    line = _sealed({"time": _now(), "event": event, **facts})
    try:
        _write(root, line, durable=True)
    except OSError as error:
        raise failure(root, error, len(line)) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _sealed(fact: Mapping[str, Any]) -> str:
    body = json.dumps(fact, allow_nan=False)
    return json.dumps({**fact, CHECK: hashlib.sha256(body.encode()).hexdigest()}, allow_nan=False)


def _write(root: Path, line: str, *, durable: bool) -> None:
    path = root / JOURNAL
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        text = line.encode() + b"\n"
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # the last writer was cut short
            text = b"\n" + text
        if os.write(descriptor, text) < len(text) and durable:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if durable:
            os.fsync(descriptor)
            for folder in (path.parent, root):
                fsync_directory(folder)
    finally:
        os.close(descriptor)


def vouched(root: Path) -> list[dict[str, Any]]:
    """The lines that `record` wrote, oldest first. Raises CheckpointError for one that was changed."""
    found = []
    for fact in read(root):
        if CHECK in fact:
            body = {key: value for key, value in fact.items() if key != CHECK}
            if json.loads(_sealed(body))[CHECK] != fact[CHECK]:
                raise CheckpointError(
                    f"{root / JOURNAL}: the line of {fact.get('time')} was changed after it was written. "
                    "Restore the file from a copy, or take that line out by hand."
                )
            found.append(body)
    return found


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
