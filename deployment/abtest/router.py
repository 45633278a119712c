"""Routing of users to releases, the same in every process, on every machine and after every restart.

Weighted rendezvous hashing: each arm draws a number for the user from a keyed hash, and the best draw wins.
Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; the weights as in
Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005.
"""

import hashlib
import math
import sys
from collections.abc import Mapping

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import aliases


class Router:
    """Routes users to aliases, in proportion to their weights.

    A user's arm depends only on the experiment's name, the user's id and the relative weights, so experiments
    are independent of each other. When weights change, a user moves only to an arm whose weight grew relative
    to that of the arm it leaves; when a single arm changes, comes or goes, no routing moves fewer users.
    Raises CheckpointError for weights or names that cannot be used.
    """

    def __init__(self, experiment: str, weights: Mapping[str, float]) -> None:
        self.experiment = experiment
        self.shares = shares(weights)
        # The key may have 64 bytes at most, a name any number.
        key = hashlib.blake2b(encoded(experiment, "experiment's name")).digest()
        # An alias has no zero byte, so that no two pairs of alias and user make the same message.
        self._draws = {
            alias: hashlib.blake2b(alias.encode() + b"\0", key=key, digest_size=8)
            for alias, share in self.shares.items()
            if share > 0
        }

    def route(self, user_id: str) -> str:
        """Return the alias for a user. Raises CheckpointError for an id that is empty or not a string."""
        user = encoded(user_id, "user id")
        return min(self._draws, key=lambda alias: self._arrival(alias, user))

    def _arrival(self, alias: str, user: bytes) -> float:
        """Return an exponential time of rate `share`, so that `alias` arrives first with probability `share`.

        The inverse of the score -share / ln(u), which does not overflow.
        """
        draw = self._draws[alias].copy()
        draw.update(user)
        # 52 bits and a half are exact in a float, and lie strictly between 0 and 1.
        u = ((int.from_bytes(draw.digest(), "big") >> 12) + 0.5) / 2**52
        return -math.log(u) / self.shares[alias]


def shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights, normalised to a sum of 1, by alias. Raises CheckpointError for unusable ones."""
    if not weights:
        raise CheckpointError("There are no weights: give at least one, such as champion=1.0.")
    for alias, weight in weights.items():
        if not isinstance(alias, str):
            raise CheckpointError(f"{alias!r} is not an alias: it must be a string, such as champion.")
        aliases.check(alias)
        # No float holds every whole number; true and false are whole numbers to Python.
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= sys.float_info.max:
            raise CheckpointError(f"{alias}={weight!r} is not a weight: give a finite number, 0 or more.")
    largest = float(max(weights.values()))
    if largest == 0:
        raise CheckpointError("Every weight is 0: give at least one arm a weight above 0.")
    parts = {alias: weights[alias] / largest for alias in sorted(weights)}
    total = math.fsum(parts.values())
    return {alias: part / total for alias, part in parts.items()}


def encoded(text: str, what: str) -> bytes:
    """Return a name as UTF-8. Raises CheckpointError unless it is a string that is not empty."""
    if not isinstance(text, str) or not text:
        raise CheckpointError(f"{text!r} is not a {what}: it must be a string, and not empty.")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{text!r} is not a {what}: it contains half of a surrogate pair.") from None
