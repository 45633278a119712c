"""The journal of a checkpoint folder: one JSON line an event, only ever appended.

Most lines are for people, and for `why` after a file is gone: `append` ignores a disk that refuses, and no
code decides anything by them. Decisions such as which release is the champion have no other record: `record`
makes their lines durable, with a number and a digest, and `recorded` reads those alone.
"""

import contextlib
import fcntl
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from peakpoint.base import files
from peakpoint.base.bounded import LONGEST, Absent, json_value, lines
from peakpoint.base.errors import CheckpointError, SaveFailed, os_reason
from peakpoint.base.text import json_text, utc_now

JOURNAL = "metadata/journal.jsonl"
CHECK, NUMBER = "check", "number"
SEALED = ("alias", "released")
"""Events that only `record` writes; their lines count only with a digest."""

_WHOLE = re.compile(rf'"{CHECK}": ".{{66}}|[0-9a-f]{{64}}"\}}')
"""End of a sealed line, which a line that was cut short lacks."""


def append(root: Path, event: str, file: str, reason: str, sequence: int | None = None) -> None:
    """Add a line; an error of the disk is ignored."""
    fact = {"time": utc_now(), "event": event, "file": file, "sequence": sequence, "reason": reason}
    with contextlib.suppress(OSError), _opened(root) as descriptor:
        files.append_line(descriptor, json_text(fact, LONGEST))


def record(root: Path, event: str, facts: Mapping[str, Any]) -> None:
    """Add a line that code relies on; durable on return. Raises SaveFailed when the disk refuses.

    `event` is one of SEALED. Lines are numbered, so that none can be put in again later or elsewhere.
    """
    assert event in SEALED, event
    try:
        _write(root, {"time": utc_now(), "event": event, **facts})
    except OSError as error:
        raise SaveFailed(
            f"{root / JOURNAL} cannot be written: {os_reason(error)}. Check aliases and releases with "
            "peakpoint ls before you try again.",
            needed=None,
            free=None,
            errno=error.errno,
        ) from error


def _sealed(fact: Mapping[str, Any]) -> str:
    return json_text({**fact, CHECK: _seal(fact)}, LONGEST)


def _seal(fact: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fact).encode()).hexdigest()


def _write(root: Path, fact: Mapping[str, Any]) -> None:
    """Write a sealed line durably, one process at a time."""
    with _opened(root) as descriptor:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        number = max((n for f in _facts(_lines(root)) if isinstance(n := f.get(NUMBER), int)), default=0) + 1
        files.append_line(descriptor, _sealed({NUMBER: number, **fact}))
        files.fsync_file(descriptor, root / JOURNAL)
        for folder in ((root / JOURNAL).parent, root):
            files.fsync_directory(folder)


def _opened(root: Path) -> contextlib.AbstractContextManager[int]:
    path = root / JOURNAL
    path.parent.mkdir(exist_ok=True)
    return files.appending(path)


def recorded(root: Path) -> list[dict[str, Any]]:
    """Return the facts that `record` wrote, oldest first, with time, event and number.

    Raises CheckpointError for a line that was changed, moved, or lost its digest.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(root), 1):
        fact = next(_facts([line]), None)
        if fact is None and not _WHOLE.search(line):
            continue  # a line that its writer, killed, did not finish
        if fact is None or CHECK in fact or fact.get("event") in SEALED:
            body = {key: value for key, value in (fact or {}).items() if key != CHECK}
            if fact is None or not _is_sealed(fact, body):
                raise _refused(root, number, "was changed after it was written")
            if found and body[NUMBER] <= found[-1][NUMBER]:
                raise _refused(root, number, "was written earlier, and put in again")
            found.append(body)
    return found


def _refused(root: Path, line: int, what: str) -> CheckpointError:
    return CheckpointError(
        f"{root / JOURNAL}: line {line} {what}. Restore the file from a copy, or take that line out by hand."
    )


def _is_sealed(fact: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    return (
        _seal(body) == fact.get(CHECK) and isinstance(body.get(NUMBER), int) and body.get("event") in SEALED
    )


def _lines(root: Path) -> Iterator[str]:
    """Yield the lines of the journal, none without one. Raises CheckpointError."""
    with contextlib.suppress(Absent):
        yield from lines(root / JOURNAL)


def read(root: Path) -> list[dict[str, Any]]:
    """Return the facts in the journal of a checkpoint root, oldest first.

    Each has `time` (UTC, ISO 8601), `event` (saved, deleted, quarantined, resumed, swept), `file` (relative
    to the root), `sequence` (of the checkpoint, or None) and `reason`. Torn and foreign lines are left out.
    """
    with contextlib.suppress(CheckpointError):
        return list(_facts(_lines(root)))
    return []


def _facts(found: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in found:
        with contextlib.suppress(ValueError):
            fact = json_value(line)
            if isinstance(fact, dict):
                yield fact
