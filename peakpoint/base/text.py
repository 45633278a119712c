"""Texts that several packages share: the nearest name, the time, and JSON that can be read again."""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from peakpoint.base.errors import CheckpointError

SMALL = 64 << 20
"""Largest record, card or index in bytes."""
DEEPEST = 64
"""Deepest nesting of lists and objects."""
WIDEST = 64
"""Largest size of an integer in bits: seeds of torch have as many."""
_SPARE = 256
"""Bytes for a digest and a line end."""


def closest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the known name most similar to `word` in any case, None below the similarity `cutoff`."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), lower, 1, cutoff)
    return lower[close[0]] if close else None


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message: `: did you mean X?` with the closest known name, or all names."""
    names = sorted(known)
    close = closest(word, names)
    return f": did you mean {prefix}{close}?" if close else f"; there are: {', '.join(names) or 'none'}."


def in_short(names: Sequence[str]) -> str:
    """Return names joined by commas: the first three, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def utc_now() -> str:
    """Return the time in ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def readable(value: Any) -> Any:
    """Return a nested value as JSON can say it.

    NaN and infinity become `nan`, `inf` and `-inf`, and what is not plain is named by its type.
    """
    if isinstance(value, float):
        return value if value - value == 0 else repr(value)
    if isinstance(value, Mapping):
        return {str(k): readable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [readable(v) for v in value]
    return value if isinstance(value, str | int | None) else f"<{type(value).__name__}>"


def json_text(value: Mapping[str, Any], limit: int = SMALL, indent: int | None = None) -> str:
    """Return a value as JSON that is read within these bounds, as `readable` says it.

    `limit` is that of its reader in bytes. Raises CheckpointError, which names the key.
    """
    for key, each in value.items():
        try:
            check_bounds([each])
        except ValueError as error:
            raise CheckpointError(
                f"{key} cannot be saved as JSON: {error}. Give text, or a smaller value."
            ) from None
    text = json.dumps(readable(value), indent=indent, allow_nan=False)
    if len(text) > limit - _SPARE:
        longest = max(value, key=lambda key: len(json.dumps(readable(value[key]))))
        raise CheckpointError(f"{longest} cannot be saved as JSON: it takes too many bytes. Leave it out.")
    return text


def check_bounds(value: Any) -> None:
    """Raise ValueError, with the key, for too deep a nesting and an integer of more than WIDEST bits."""
    level = [("it", value)]
    for _ in range(DEEPEST + 1):
        children: dict[int, tuple[str, Any]] = {}  # by identity: what holds itself twice would double
        for name, each in level:
            if isinstance(each, Mapping):
                children |= {id(child): (f"its {str(key)[:80]}", child) for key, child in each.items()}
            elif isinstance(each, list | tuple):
                children |= {id(child): (name, child) for child in each}
            elif isinstance(each, int) and each.bit_length() > WIDEST:
                raise ValueError(f"{name} has a number of more than {WIDEST} bits")
        level = list(children.values())
    if level:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
