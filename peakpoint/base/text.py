"""Texts that several packages share: the nearest name, the time, and values as JSON can say them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any


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
