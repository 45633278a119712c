"""The space of a search: the swept overrides of a command line, in Hydra's own grammar.

    optimizer=adamw,sgd   choice(0.5,0.7)   range(1,9)   interval(0.1,0.9)   tag(log,interval(1e-4,1e-1))

Numbers between two bounds are drawn as such, of everything else one of the listed values.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from peakpoint.base.errors import UserError

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

MOST = 1000
"""Values of a dimension, and trials of a grid."""


@dataclass(frozen=True)
class Bounds:
    """The smallest and largest number of a dimension, whole ones where both are; `step` None: any between."""

    low: float
    high: float
    step: float | None = None
    log: bool = False


@dataclass(frozen=True)
class Dimension:
    """An override of which each trial has one value: one of `values`, as typed, or a number in `bounds`."""

    key: str
    word: str
    values: tuple[str, ...] = ()
    bounds: Bounds | None = None

    def corners(self) -> list[str]:
        """Return the overrides with each listed value, or with both bounds."""
        if self.values:
            return [f"{self.key}={value}" for value in self.values]
        assert self.bounds
        return [f"{self.key}={value!r}" for value in (self.bounds.low, self.bounds.high)]

    def draw(self, trial: "BaseTrial") -> str:
        """Return the override of a trial; one that it has already is returned again."""
        if self.bounds is None:
            return f"{self.key}={trial.suggest_categorical(self.key, self.values)}"
        low, high, step, log = (getattr(self.bounds, name) for name in ("low", "high", "step", "log"))
        if isinstance(low, int) and isinstance(high, int):
            return f"{self.key}={trial.suggest_int(self.key, low, high, step=step or 1, log=log)}"
        return f"{self.key}={trial.suggest_float(self.key, low, high, step=step, log=log)!r}"


def split_words(words: Iterable[str], loader: Any = None) -> tuple[list[Dimension], list[str]]:
    """Return the dimensions that overrides span, and the other overrides. Raises UserError.

    `loader` of Hydra's configuration lists the options of a group for glob(*).
    """
    parser = OverridesParser.create(loader)
    dimensions, fixed = [], []
    for word in words:
        parsed = parser.parse_override(word)
        if parsed.is_sweep_override():
            dimensions.append(_dimension(word, parsed))
        else:
            fixed.append(word)
    return dimensions, fixed


def _dimension(word: str, parsed: Override) -> Dimension:
    key, value = parsed.get_key_element(), parsed.value()
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"{word}: an interval has two numbers, the smaller one first.")
        log = "log" in value.tags
        if log and low <= 0:
            raise UserError(f"{word}: a logarithmic interval begins above 0.")
        return Dimension(key, word, bounds=Bounds(low, high, log=log))
    values = tuple(itertools.islice(parsed.sweep_string_iterator(), MOST + 1))
    if not 0 < len(values) <= MOST:
        raise UserError(f"{word}: a dimension of a search has from 1 to {MOST} values.")
    whole = isinstance(value, RangeSweep) and all(isinstance(n, int) for n in (value.start, value.step))
    if whole and len(values) > 1:
        first, second, last = (int(values[index]) for index in (0, 1, -1))
        low, high = sorted((first, last))
        return Dimension(key, word, values, Bounds(low, high, abs(second - first)))
    return Dimension(key, word, values)


def corners(space: Sequence[Dimension]) -> list[list[str]]:
    """Return combinations in which every listed value and every bound occurs, few of them."""
    firsts = [dimension.corners()[0] for dimension in space]
    others = [
        [*firsts[:index], word, *firsts[index + 1 :]]
        for index, dimension in enumerate(space)
        for word in dimension.corners()[1:]
    ]
    return [firsts, *others]


def grid(space: Sequence[Dimension]) -> tuple[list[Dimension], list[Mapping[str, str]]]:
    """Return the space without bounds, and all its points in order. Raises UserError for an interval."""
    for dimension in space:
        if not dimension.values:
            raise UserError(
                f"{dimension.word} lists no values for a grid: write {dimension.key}=A,B,C, or use "
                "search=tpe."
            )
    if (count := math.prod(len(dimension.values) for dimension in space)) > MOST:
        raise UserError(f"A grid of {count} trials is too large: at most {MOST}, or use search=tpe.")
    keys = [dimension.key for dimension in space]
    points = itertools.product(*(dimension.values for dimension in space))
    listed = [Dimension(each.key, each.word, each.values) for each in space]
    return listed, [dict(zip(keys, point, strict=True)) for point in points]
