"""Differences of two nested values, by the dotted path of each leaf."""

from collections.abc import Mapping
from typing import Any

Pairs = dict[str, list[Any]]
"""Two values by key, None for a missing one."""


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted paths; an empty mapping is a leaf."""
    if isinstance(value, Mapping) and value:
        inner = (flat(child, f"{key}.{name}" if key else str(name)) for name, child in value.items())
        return {name: leaf for each in inner for name, leaf in each.items()}
    return {key: value} if key else {}


def pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> Pairs:
    """Return both values of every key of either mapping."""
    return {key: [a.get(key), b.get(key)] for key in dict.fromkeys([*a, *b])}


def differ(a: Mapping[str, Any], b: Mapping[str, Any]) -> Pairs:
    """Return the pairs that differ in any digit; NaN equals NaN."""
    return {key: pair for key, pair in pairs(a, b).items() if repr(pair[0]) != repr(pair[1])}
