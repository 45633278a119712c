"""The rules by which a checkpoint is selected: names, types and ranges, and one line for each mistake.

conf/release/rules/default.yaml says what they mean and holds every value.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError, PeakpointError
from peakpoint.base.files import CONF
from peakpoint.base.given import INF, LARGEST_BATCH, require_range
from peakpoint.base.text import nearest
from peakpoint.checkpointing.metrics import METRICS, mode_of
from peakpoint.trainer.config.explain import explain
from peakpoint.trainer.config.schema import require

FOLDER = CONF / "release" / "rules"
DEFAULT = "default"

NUMBERS = ("min", "max", "above", "below")
MARGINS = ("min_delta", "max_delta", "min_ratio", "max_ratio")
CHAMPION, TARGET = "champion", "target"
MEASURED = ("latency_ms", "weights_bytes")
"""Metrics that no manifest has: they are measured, of the checkpoints that meet every other rule."""
UNORDERED = ("epoch", "global_step")
"""What has no better and worse: the later comes first, or with a minus the earlier."""
PROPORTIONS = [record.name for record in METRICS.values() if record.has_interval]


def _require_name(metric: str) -> None:
    require(bool(metric.strip()), "a metric has no name: write one that is recorded, such as accuracy.")


@dataclass(kw_only=True)
class Requirement:
    """Bounds on one metric: of its value, or with `vs` of its margin to the champion or the run's target."""

    metric: str
    vs: str | None = None
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    min_delta: float | None = None
    max_delta: float | None = None
    min_ratio: float | None = None
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        _require_name(self.metric)
        require(self.vs in (None, CHAMPION, TARGET), f"vs={self.vs} must be {CHAMPION} or {TARGET}.")
        require(
            self.vs != TARGET or self.metric == "sparsity",
            f"vs={TARGET} is for sparsity alone: {self.metric} has no target.",
        )
        right = MARGINS if self.vs else NUMBERS
        require(bool(self.bounds), f"{self.metric} has no bound: add one of {', '.join(right)}.")
        kind = (
            f"no margin, and with vs={self.vs}" if self.vs else f"a margin to the {CHAMPION}, and without vs"
        )
        for name, value in self.bounds.items():
            require(name in right, f"{name} is {kind} there are {', '.join(right)}.")
            require(math.isfinite(value), f"{name}={value} is not a number.")
        require_range(self, "", 0, INF, "min_ratio max_ratio")

    @property
    def bounds(self) -> dict[str, float]:
        """Return the given bounds by name."""
        given = {name: getattr(self, name) for name in (*NUMBERS, *MARGINS)}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(kw_only=True)
class Key:
    """A metric to sort by, best first; `mode` is max or min."""

    metric: str
    mode: str

    def __post_init__(self) -> None:
        _require_name(self.metric)
        require(self.mode in ("max", "min"), f"{self.metric}: mode={self.mode} must be max or min.")

    def __str__(self) -> str:
        return self.metric if self.mode == "max" else f"-{self.metric}"


@dataclass(kw_only=True)
class Tie:
    """When candidates are as good as the best by `metric`: by `confidence`, or by a distance `within`."""

    metric: str
    prefer: list[Key]
    confidence: float | None = None
    within: float | None = None

    def __post_init__(self) -> None:
        require(
            (self.confidence is None) != (self.within is None),
            "tie needs either confidence, such as 0.95, or within, a distance.",
        )
        require_range(self, "tie.", 0, INF, "within")
        require(
            self.confidence is None or 0 < self.confidence < 1,
            f"tie.confidence={self.confidence} must lie between 0 and 1, such as 0.95.",
        )
        require(
            self.confidence is None or self.metric in PROPORTIONS,
            f"tie.confidence needs a metric that counts images ({', '.join(PROPORTIONS)}), "
            f"not {self.metric}: use tie.within, a distance.",
        )


@dataclass(kw_only=True)
class Verify:
    """How far a metric that is measured again may be from the recorded one."""

    tolerance: float

    def __post_init__(self) -> None:
        require_range(self, "verify.", 0, INF, "tolerance")


@dataclass(kw_only=True)
class Latency:
    """How latency_ms is measured: the median of `repeats` passes over `batch` images."""

    batch: int
    repeats: int
    warmup: int

    def __post_init__(self) -> None:
        require_range(self, "latency.", 1, LARGEST_BATCH, "batch")
        require_range(self, "latency.", 2, INF, "repeats")
        require_range(self, "latency.", 0, INF, "warmup")


@dataclass(kw_only=True)
class Rules:
    """What a checkpoint must meet, by what the best is found, and how that is measured."""

    name = ""  # of the file; no key of it
    require: list[Requirement]
    rank: list[Key]
    tie: Tie | None
    verify: Verify
    latency: Latency

    def __post_init__(self) -> None:
        names = [key.metric for key in self.rank]
        require(bool(names), "rank is empty: name what is best, such as rank: [accuracy].")
        for name in names:
            require(names.count(name) == 1, f"rank names {name} twice.")
        if self.tie:
            require(
                self.tie.metric == names[0],
                f"tie.metric is {self.tie.metric}, but rank begins with {names[0]}: "
                "let them be the same, or write tie: null.",
            )

    @property
    def metrics(self) -> list[str]:
        """Return every metric that the rules name, once."""
        keys = [*self.rank, *(self.tie.prefer if self.tie else [])]
        return list(dict.fromkeys([*(r.metric for r in self.require), *(key.metric for key in keys)]))


def load(rules: str | Path = DEFAULT) -> Rules:
    """Return the rules of a YAML file, or by the name of one in conf/release/rules.

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
    """Return rules from plain values with every key. Raises CheckpointError."""
    values, where = bounded.literal(dict(given)), ""
    try:
        values["rank"] = _keys(values["rank"])
        if isinstance(values["tie"], dict) and "prefer" in values["tie"]:
            values["tie"]["prefer"] = _keys(values["tie"]["prefer"])
        require(isinstance(values["require"], list), f"require is {values['require']!r}: it must be a list.")
        for number, each in enumerate(values["require"]):
            where = f"require[{number}]: "  # OmegaConf does not say which
            require(isinstance(each, dict), f"{each!r} stands where keys are expected, such as metric.")
            _typed(Requirement, each)
        where = ""
        rules: Rules = _typed(Rules, values)
    except (OmegaConfBaseException, PeakpointError, ValueError) as error:
        raise CheckpointError(f"{name}: {where}{explain(error)}") from None
    rules.name = name
    return rules


def _typed(kind: type, values: Any) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))


def _keys(given: Any) -> list[Any]:
    """Return keys to sort by as mappings; a text names a metric, with a minus where lower is better."""
    listed = given if isinstance(given, list) else [given]
    return [_key(key) if isinstance(key, str) else key for key in listed]


def _key(text: str) -> dict[str, str]:
    _require_name(text.removeprefix("-"))
    if text.startswith("-"):
        return {"metric": text.removeprefix("-"), "mode": "min"}
    remedy = f"write {{metric: {text}, mode: max}}, or with mode: min."
    if text not in UNORDERED and mode_of(text, remedy) == "min":
        raise CheckpointError(f"{text} is better the lower it is: write -{text}.")
    return {"metric": text, "mode": "max"}
