"""The append-only log of an experiment as JSON lines: exposures of users to releases, and their outcomes.

Several processes of a machine may write to one log. A line that a crash cut short is skipped; the next one is
whole. Lines are not synced individually: a power cut may lose the last seconds.
"""

import contextlib
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peakpoint.base.bounded import LONGEST, json_value, lines
from peakpoint.base.errors import CheckpointError, os_reason
from peakpoint.base.files import append_line, appending
from peakpoint.base.text import json_text, utc_now
from peakpoint.deployment.abtest.router import encoded, shares

EXPOSURE = "exposure"
OUTCOME = "outcome"
LARGEST = 1e100
"""Largest size of an outcome; the squares of larger ones are beyond a float."""


def is_outcome(value: object) -> bool:
    """Return whether a value is true, false, or a number that can be compared: NaN and infinity are none."""
    return isinstance(value, int | float) and abs(value) <= LARGEST


def design(weights: Mapping[str, float], versions: Mapping[str, str]) -> str:
    """Return a digest of the design: the share of each arm and the release that its alias names.

    Users of two designs are not compared: pooled over a change of the shares, the arms would differ in the
    time of their users (Simpson's paradox), and over a rollback in the release shown.
    """
    parts = {alias: (f"{share:.9f}", versions.get(alias)) for alias, share in shares(weights).items()}
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=8).hexdigest()


class Log:
    """The writer of one experiment's lines. Raises CheckpointError when the file cannot be written to.

    `hash_users` stores a keyed hash in place of each id: enough to count users, not to hide ids that can be
    guessed. Keep the choice for the whole log, or every user counts twice.
    """

    def __init__(self, path: Path, experiment: str, *, hash_users: bool = False) -> None:
        self.path = path
        self.experiment = experiment
        self._key = hashlib.blake2b(encoded(experiment, "experiment's name")).digest()
        self._hash_users = hash_users
        with self._opened():  # refused here rather than at the first user
            pass

    def exposed(self, user_id: str, alias: str, version: str, design: str) -> None:
        """Log that a user was shown a release; call it as the answer is given."""
        self._append(EXPOSURE, user_id, {"alias": alias, "version": version, "design": design})

    def outcome(self, user_id: str, value: float) -> None:
        """Log the outcome of a user: True or False, or a number where more is better."""
        if not is_outcome(value):
            raise CheckpointError(
                f"{value!r} is not an outcome: give true, false or a number of at most {LARGEST:g} in size."
            )
        self._append(OUTCOME, user_id, {"value": float(value)})

    def _append(self, event: str, user_id: str, facts: Mapping[str, Any]) -> None:
        raw = encoded(user_id, "user id")
        if self._hash_users:
            user_id = hashlib.blake2b(raw, key=self._key, digest_size=16).hexdigest()
        line = {"time": utc_now(), "event": event, "experiment": self.experiment, "user": user_id, **facts}
        with self._opened() as descriptor:
            append_line(descriptor, json_text(line, LONGEST))

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        try:
            with appending(self.path) as descriptor:
                yield descriptor
        except OSError as error:
            raise CheckpointError(
                f"The log {self.path} cannot be written to: {os_reason(error)}. Free space or name another."
            ) from error


@dataclass
class Subject:
    """A user: arm and design of the first exposure, the first outcome after it, and all arms seen."""

    alias: str
    design: str
    arms: set[str]
    outcome: float | None = None


@dataclass
class Study:
    """The log of an experiment: subjects by user, and the number of lines that are not counted.

    `strays` are outcomes without an earlier exposure, `unreadable` lines that are torn or of another kind.
    """

    subjects: dict[str, Subject] = field(default_factory=dict)
    strays: int = 0
    unreadable: int = 0

    def add(self, fact: Mapping[str, Any]) -> None:
        """Count the values of a line."""
        subject = self.subjects.get(fact["user"])
        if fact["event"] == EXPOSURE:
            first = Subject(fact["alias"], fact["design"], set())
            self.subjects.setdefault(fact["user"], first).arms.add(fact["alias"])
        elif subject is None:
            self.strays += 1
        elif subject.outcome is None:
            subject.outcome = fact["value"]

    def within(self, design: str) -> list[Subject]:
        """Return the users first exposed under a design, who are compared by the arm of that exposure.

        A user who later saw another arm stays with the first (intention to treat): users who come back to be
        moved are the active ones, and an arm without them would look worse than it is.
        """
        return [subject for subject in self.subjects.values() if subject.design == design]

    @property
    def crossed(self) -> int:
        """Return the number of users who saw more than one arm."""
        return sum(len(subject.arms) > 1 for subject in self.subjects.values())


def study(path: Path, experiment: str) -> Study:
    """Read a log in the order of its lines, as clocks differ. Raises CheckpointError when there is none."""
    found = Study()
    for line in lines(path, sys.maxsize):  # the log of a busy service is long; it is not held in memory
        fact = _fact(line)
        if fact is None:
            found.unreadable += bool(line.strip())
        elif fact["experiment"] == experiment:
            found.add(fact)
    return found


_STRINGS = {EXPOSURE: ("user", "alias", "version", "design"), OUTCOME: ("user",)}


def _fact(line: str) -> dict[str, Any] | None:
    """Return the values of a line of `Log`, or None for anything else."""
    try:
        fact: dict[str, Any] = json_value(line)
        strings = all(isinstance(fact[name], str) for name in ("experiment", *_STRINGS[fact["event"]]))
        comparable = fact["event"] == EXPOSURE or (
            isinstance(fact["value"], float) and is_outcome(fact["value"])
        )
        return fact if strings and comparable else None
    except (ValueError, TypeError, LookupError):
        return None
