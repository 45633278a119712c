"""The rules by which a checkpoint is selected: from YAML to typed values, one line for each mistake.

conf/release/rules/default.yaml says what they mean and holds every default.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import CONF
from peakpoint.base.text import nearest
from peakpoint.checkpointing.metrics import METRICS, mode_of

FOLDER = CONF / "release" / "rules"
DEFAULT = "default"

NUMBERS = ("min", "max", "above", "below")
MARGINS = ("min_delta", "max_delta", "min_ratio", "max_ratio")
CHAMPION, TARGET = REFERENCES = ("champion", "target")
MEASURED = ("latency_ms", "weights_bytes")
"""What no manifest has: it is measured, of those that meet every other rule."""
UNORDERED = ("epoch", "global_step")
"""What has no better and worse: the later comes first, or with a minus the earlier."""
PROPORTIONS = [record.name for record in METRICS.values() if record.counts]


@dataclass(frozen=True)
class Requirement:
    """One bound on one metric; `versus` is what a margin is measured from, None for a plain number."""

    metric: str
    operator: str
    bound: float
    versus: str | None

    def __str__(self) -> str:
        against = f" vs {self.versus}" if self.versus else ""
        return f"{self.metric} {self.operator} {self.bound:g}{against}"


@dataclass(frozen=True)
class Key:
    """A metric to sort by, best first; `mode` is max or min."""

    metric: str
    mode: str

    def __str__(self) -> str:
        return self.metric if self.mode == "max" else f"-{self.metric}"


@dataclass(frozen=True)
class Tie:
    """When `metric` does not tell two apart: by `confidence` or by a distance `within`, one of them None."""

    metric: str
    confidence: float | None
    within: float | None
    prefer: tuple[Key, ...]


@dataclass(frozen=True)
class Latency:
    """How latency_ms is measured: the median of `repeats` passes over `batch` images."""

    batch: int
    repeats: int
    warmup: int


@dataclass(frozen=True)
class Rules:
    """Checked rules; `name` is the file that they are from."""

    name: str
    require: tuple[Requirement, ...]
    rank: tuple[Key, ...]
    tie: Tie | None
    tolerance: float
    latency: Latency

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that the rules name, once."""
        tie = (self.tie.metric, *(k.metric for k in self.tie.prefer)) if self.tie else ()
        named = (*(r.metric for r in self.require), *(k.metric for k in self.rank), *tie)
        return tuple(dict.fromkeys(named))


def load(rules: str | Path = DEFAULT) -> Rules:
    """Rules from a YAML file, or by the name of one in conf/release/rules.

    Raises CheckpointError: one line that names the file and the key, with the nearest right name.
    """
    path = Path(rules)
    if not path.is_file():
        shipped = {p.stem: p for p in FOLDER.glob("*.yaml")}
        if str(rules) not in shipped:
            raise CheckpointError(
                f"{rules} is neither a file nor rules of conf/release/rules{nearest(str(rules), shipped)}"
            )
        path = shipped[str(rules)]
    return parsed(
        {**bounded.read_strict_yaml(FOLDER / f"{DEFAULT}.yaml"), **bounded.read_strict_yaml(path)}, path.name
    )


def parsed(given: Mapping[Any, Any], name: str) -> Rules:
    """Rules from plain values with every key. Raises CheckpointError."""
    try:
        require, rank, tie, verify, latency = _values(
            given, "", ("require", "rank", "tie", "verify", "latency")
        )
        rules = Rules(
            name=name,
            require=tuple(r for n, rule in _numbered(require, "require") for r in _requirements(rule, n)),
            rank=_keys(rank, "rank"),
            tie=None if tie is None else _tie(tie),
            tolerance=_number(_values(verify, "verify", ("tolerance",))[0], "verify.tolerance", 0),
            latency=_latency(latency),
        )
        if not rules.rank:
            raise CheckpointError("rank is empty: name what is best, such as rank: [accuracy].")
        if rules.tie and rules.tie.metric != rules.rank[0].metric:
            raise CheckpointError(
                f"tie.metric is {rules.tie.metric}, but rank begins with {rules.rank[0].metric}: "
                "let them be the same, or write tie: null."
            )
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    return rules


def _values(given: Any, where: str, names: tuple[str, ...]) -> list[Any]:
    """The value of each name, which must all be there, and no other."""
    _known(given, where, names)
    for name in names:
        if name not in given:
            raise CheckpointError(f"{where or 'the file'} has no {name}.")
    return [given[name] for name in names]


def _known(given: Any, where: str, names: Iterable[str]) -> None:
    names = tuple(names)
    if not isinstance(given, Mapping):
        raise CheckpointError(f"{where} is {given!r}: it must have keys: {', '.join(names)}.")
    for key in given:
        if key not in names:
            raise CheckpointError(
                f"{where}{'.' if where else ''}{key} is not a key{nearest(str(key), names)}"
            )


def _numbered(given: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(given, list):
        raise CheckpointError(f"{where} is {given!r}: it must be a list.")
    return [(f"{where}[{number}]", each) for number, each in enumerate(given)]


def _requirements(given: Any, where: str) -> list[Requirement]:
    _known(given, where, ("metric", "vs", *NUMBERS, *MARGINS))
    metric, versus = _metric(given.get("metric"), f"{where}.metric"), given.get("vs")
    if versus is not None and versus not in REFERENCES:
        raise CheckpointError(f"{where}.vs is {versus!r}: it must be {CHAMPION} or {TARGET}.")
    if versus == TARGET and metric != "sparsity":
        raise CheckpointError(f"{where}: vs: target is for sparsity alone: {metric} has no target.")
    bounds = {name: value for name, value in given.items() if name not in ("metric", "vs")}
    right = MARGINS if versus else NUMBERS
    if not bounds:
        raise CheckpointError(f"{where} requires nothing of {metric}: add one of {', '.join(right)}.")
    for name in bounds:
        if name not in right:
            needs = (
                f"is for vs: {CHAMPION}, and without it"
                if name in MARGINS
                else f"is no margin, and with vs: {versus}"
            )
            raise CheckpointError(f"{where}.{name} {needs} there are {', '.join(right)}.")
    found = []
    for name, value in bounds.items():
        least = 0.0 if name.endswith("ratio") else -math.inf
        found.append(Requirement(metric, name, _number(value, f"{where}.{name}", least), versus))
    return found


def _keys(given: Any, where: str) -> tuple[Key, ...]:
    given = [given] if isinstance(given, str | Mapping) else given
    keys = tuple(_key(each, at) for at, each in _numbered(given, where))
    for at, key in enumerate(keys):
        if key.metric in (k.metric for k in keys[:at]):
            raise CheckpointError(f"{where} names {key.metric} twice.")
    return keys


def _key(given: Any, where: str) -> Key:
    if isinstance(given, Mapping):
        metric, mode = _values(given, where, ("metric", "mode"))
        if mode not in ("max", "min"):
            raise CheckpointError(f"{where}.mode is {mode!r}: it must be max or min.")
        return Key(_metric(metric, f"{where}.metric"), mode)
    text = _metric(given, where)
    if text.startswith("-"):
        return Key(text.removeprefix("-"), "min")
    remedy = f"write {{metric: {text}, mode: max}}, or with mode: min."
    if text not in UNORDERED and mode_of(text, remedy) == "min":
        raise CheckpointError(f"{where}: {text} is better the lower it is: write -{text}.")
    return Key(text, "max")


def _tie(given: Any) -> Tie:
    _known(given, "tie", ("metric", "confidence", "within", "prefer"))
    metric, prefer = _metric(given.get("metric"), "tie.metric"), _keys(given.get("prefer"), "tie.prefer")
    confidence, within = given.get("confidence"), given.get("within")
    if (confidence is None) == (within is None):
        raise CheckpointError("tie needs either confidence, such as 0.95, or within, a distance.")
    if within is not None:
        return Tie(metric, None, _number(within, "tie.within", 0), prefer)
    if metric not in PROPORTIONS:
        raise CheckpointError(
            f"tie.confidence needs a metric that counts images ({', '.join(PROPORTIONS)}), "
            f"not {metric}: use tie.within, a distance."
        )
    level = _number(confidence, "tie.confidence", 0)
    if not 0 < level < 1:
        raise CheckpointError(f"tie.confidence is {level:g}: it must lie between 0 and 1, such as 0.95.")
    return Tie(metric, level, None, prefer)


def _latency(given: Any) -> Latency:
    names = ("batch", "repeats", "warmup")
    values = _values(given, "latency", names)
    for name, value, least in zip(names, values, (1, 2, 0), strict=True):
        if type(value) is not int or value < least:
            raise CheckpointError(
                f"latency.{name} is {value!r}: it must be a whole number, at least {least}."
            )
    return Latency(*values)


def _metric(given: Any, where: str) -> str:
    if not isinstance(given, str) or not given.strip("-"):
        raise CheckpointError(f"{where} is {given!r}: it must be the name of a metric, such as accuracy.")
    return given


def _number(given: Any, where: str, least: float) -> float:
    try:
        value = math.nan if isinstance(given, bool) else float(given)  # YAML 1.1 reads 1e-3 as a text
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise CheckpointError(f"{where} is {given!r}: it must be a number.")
    if value < least:
        raise CheckpointError(f"{where} is {value:g}: it must be at least {least:g}.")
    return value
