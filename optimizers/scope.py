"""Which weights of a network pruning may take."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from peakpoint.base.given import of_kind
from peakpoint.optimizers.pruning.pattern import Pattern, parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The weights of linear, convolution, recurrent and attention layers, less those that `exclude` names.

    `exclude` are globs over canonical names of layers or weights ("conv1", "layer4.*"), `embeddings` adds
    those of embedding layers, and with a `pattern` only weights whose input channels divide into its groups
    count.
    """

    exclude: tuple[str, ...] = ()
    embeddings: bool = False
    pattern: Pattern | None = None

    def excludes(self, name: str) -> bool:
        """Return whether a glob names a weight or its layer."""
        return any(_names(glob, name) for glob in self.exclude)

    def check(self, names: Iterable[str]) -> None:
        """Raise ValueError for a glob that names none of these weights."""
        listed = list(names)
        for glob in self.exclude:
            if not any(_names(glob, name) for name in listed):
                raise ValueError(
                    f"pruning.exclude: {glob} names no weight that could be pruned; there are: "
                    f"{', '.join(listed[:8])}{f' and {len(listed) - 8} more' if len(listed) > 8 else ''}."
                )


EVERYTHING = Scope()


def _names(glob: str, name: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name.rpartition(".")[0], glob)


def recorded(config: Any) -> Scope:
    """Return the scope of a recorded configuration, which may be anybody's; EVERYTHING where it has none."""
    pruning = config.get("pruning") if isinstance(config, Mapping) else None
    if not isinstance(pruning, Mapping):
        return EVERYTHING
    exclude, pattern = pruning.get("exclude"), pruning.get("pattern")
    try:
        return Scope(
            exclude=tuple(exclude) if isinstance(exclude, list) and of_kind(exclude, list[str]) else (),
            embeddings=pruning.get("embeddings") is True,
            pattern=parsed(pattern) if isinstance(pattern, str) else None,
        )
    except ValueError:
        return EVERYTHING
