"""Semantic versions: which is higher, which are taken, and whether a bump says enough (https://semver.org)."""

from collections.abc import Iterable, Mapping
from typing import Any

from semver import Version

from peakpoint.base.errors import CheckpointError

LONGEST = 64
"""Characters of a version, so that it fits into a file's name."""

CLOSE = 0.01
"""Largest difference of means or stds, in [0, 1] units, that another draw of the validation set makes."""


def key(version: str) -> Version:
    """Return a version to sort by: precedence as semver.org has it, so that 1.0.0+a equals 1.0.0+b.

    Raises CheckpointError for a text that is no semantic version, or that file names cannot tell apart.
    """
    try:
        if len(version) > LONGEST:
            raise ValueError
        found = Version.parse(version)
    except (TypeError, ValueError):
        shown = repr(version) if len(str(version)) <= LONGEST else f"{str(version)[:LONGEST]!r}..."
        raise CheckpointError(
            f"{shown} is not a semantic version: give it as in 1.0.0 or 2.1.0-rc.1."
        ) from None
    if version.endswith(".config"):  # NAME_v1.0.0-rc.config.json is the name of a config
        raise CheckpointError(f"The version {version} ends with .config, as other files do: choose another.")
    return found


def check_unused(version: str, taken: Iterable[str]) -> None:
    """Raise CheckpointError when a version of equal precedence was released, whatever became of it."""
    same = [each for each in taken if key(each) == key(version)]
    if same:
        raise CheckpointError(
            f"Version {version} is released already"
            + (f", as {same[0]}" if same[0] != version else "")
            + ": a release is never overwritten."
        )


def line(version: str) -> tuple[int, ...]:
    """Return the part that compatible versions share: the major; before 1.0.0 the minor as well."""
    found = key(version)
    return (found.major,) if found.major else (0, found.minor)


def neighbour(version: str, released: Iterable[str]) -> str | None:
    """Return the release that a new one must fit: the highest of its line below it, else the lowest above.

    Prereleases promise nothing, so they are passed over.
    """
    same = sorted((v for v in released if line(v) == line(version) and not key(v).prerelease), key=key)
    below = [v for v in same if key(v) < key(version)]
    return below[-1] if below else next(iter(same), None)


def next_line(version: str, released: Iterable[str]) -> str:
    """Return the lowest version that no release binds: of a new major, before 1.0.0 of a new minor."""
    everything = [key(v) for v in (version, *released)]
    if key(version).major == 0:
        minor = max(v.minor for v in everything if v.major == 0)
        return f"0.{minor + 1}.0"
    return f"{max(v.major for v in everything) + 1}.0.0"


def check_bump(
    version: str,
    released: Iterable[str],
    before: str,
    changes: list[str],
) -> None:
    """Raise CheckpointError when something changed since the release `before`, of the same line."""
    if changes:
        more = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
        fitting = next_line(version, released)
        raise CheckpointError(
            f"Version {version} would not fit {before}: {changes[0]}{more}. A changed network or input needs "
            f"a new {'major' if key(version).major else 'minor'} version: {fitting}."
        )


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return, in words, how the configs of two releases differ in what users of the network rely on.

    Configs of another form than `network.Description.config` have nothing to compare.
    """
    old, new = _facts(before), _facts(now)
    if not old or not new:
        return []
    for name in ("the input's mean", "the input's std"):
        if _close(old[name], new[name]):
            del old[name], new[name]
    return _differences(old, new)


def shape_changes(before: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> list[str]:
    """Return, in words, which weights came, went or have another shape."""
    return _differences(before, now)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = [*old, *(name for name in new if name not in old)]
    return [f"{n} {_was(old.get(n), new.get(n))}" for n in names if old.get(n) != new.get(n)]


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that users rely on, by names for people; {} for a config of another form."""
    try:
        model, fed, out = config["model"], config["input"], config["output"]
        options = {f"the model's option {name}": value for name, value in model["options"].items()}
        inputs = {f"the input's {name}": fed[name] for name in ("shape", "mean", "std")}
        return {"the model": model["name"], **options, **inputs, "the list of classes": out["classes"]}
    except (KeyError, TypeError, AttributeError):
        return {}


def _close(old: Any, new: Any) -> bool:
    try:
        return all(abs(a - b) < CLOSE for a, b in zip(old, new, strict=True))
    except (TypeError, ValueError):  # of another length or kind
        return False


def _was(old: Any, new: Any) -> str:
    if old is None:
        return f"is new ({_short(new)})"
    if new is None:
        return f"is gone (it was {_short(old)})"
    if isinstance(old, list) and isinstance(new, list) and len(old) != len(new):
        return f"has {len(new)} entries and had {len(old)}"
    return f"is {_short(new)} and was {_short(old)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
