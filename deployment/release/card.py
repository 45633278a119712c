"""The model card of a release as plain JSON types, from its makers' texts and the record of its run.

card_page.py renders it as a page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peakpoint.base.errors import CheckpointError

TASK = "image-classification"
REQUIRED = ("description", "intended_use", "limitations", "ethical_considerations", "license")
"""Texts that only the makers can write; a release requires them."""

TEXTS = (
    *REQUIRED,
    *("license_link", "out_of_scope", "authors", "contact", "citation", "language", "datasets", "tags"),
)
"""All texts of a card, each a text or a list of texts."""


@dataclass(frozen=True)
class Result:
    """`metrics` over `samples` images (None: unknown) of a split; `of` names the weights."""

    split: str
    samples: int | None
    metrics: Mapping[str, float]
    of: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The record of a release as plain values; a mapping is empty where nothing is recorded.

    `model` is the `.config.json` of the release; `weights` has format, dtype, compress, parameters, nonzero
    and sparsity; `data`, `training` and `provenance` are those of a `RunRecord`.
    """

    version: str
    model: Mapping[str, Any]
    weights: Mapping[str, Any]
    results: Sequence[Result]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    provenance: Mapping[str, Any]


def check(texts: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError that names the missing required texts; `where` is the place to write them."""
    missing = [name for name in REQUIRED if not lines_of(texts.get(name))]
    if missing:
        names = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[1:] else missing)
        raise CheckpointError(f"The model card lacks {names}: write {where}.")


def lines_of(value: Any) -> list[str]:
    """Return a text, or a list of texts, without blanks and placeholders."""
    texts = value if isinstance(value, list | tuple) else [value]
    found = [str(text).strip() for text in texts if text is not None]
    return [text for text in found if text.strip(".?-_ ") and text.upper() not in ("TODO", "TBD", "FIXME")]


def build(texts: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """Return the card as plain JSON types."""
    given = {name: value for name, value in texts.items() if lines_of(value)}
    name = facts.model["model"]["name"]
    return {
        "name": name,
        "version": facts.version,
        "task": TASK,
        **given,
        "dataset": facts.data.get("name"),
        "performance": dict(facts.results[0].metrics) if facts.results else {},
        "sparsity": facts.weights.get("sparsity"),
        "training_epochs": facts.training.get("epoch"),
        "training_time_hours": facts.training.get("hours"),
        "tags": list(dict.fromkeys([*_tags(facts), *lines_of(texts.get("tags"))])),
        "results": [vars(result) | {"metrics": dict(result.metrics)} for result in facts.results],
        "weights": dict(facts.weights),
        "model": dict(facts.model),
        "data": dict(facts.data),
        "training": dict(facts.training),
        "provenance": dict(facts.provenance),
    }


def of_any(
    given: Mapping[str, Any], *, name: str, version: str, metrics: Mapping[str, float]
) -> dict[str, Any]:
    """Return the card of a user of the library in the form of `build`.

    Values without a place on the page are under `more`.
    """
    texts = {key: given[key] for key in TEXTS if key in given and _is_text(given[key])}
    dataset = given.get("dataset")
    performance = given.get("performance")
    if not isinstance(performance, Mapping):
        performance = metrics
    placed = {*texts, "dataset", "version", "metrics", *([] if performance is metrics else ["performance"])}
    return {
        "name": name,
        "version": version,
        **texts,
        "dataset": None if dataset is None else str(dataset),
        "tags": ["pytorch", *lines_of(texts.get("tags"))],
        "performance": {str(key): value for key, value in performance.items()},
        "more": {str(key): value for key, value in given.items() if key not in placed},
    }


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, str) for v in value))


def _tags(facts: Facts) -> list[str]:
    optimizer = facts.training.get("optimizer") or {}
    tags = ["pytorch", "peakpoint", facts.model["model"]["name"], optimizer.get("name")]
    if (facts.weights.get("sparsity") or 0) > 0:
        tags += ["pruning", "sparse"]
    return [tag for tag in tags if tag]
