"""The model card of a release as plain JSON types, from its makers' texts and the record of its run.

card_page.py renders it as a page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from peakpoint.base.errors import CheckpointError

TASK = "image-classification"
REQUIRED = ("description", "intended_use", "limitations", "ethical_considerations", "license")
"""Texts that only the makers can write; a release requires them."""


@dataclass(kw_only=True)
class Texts:
    """The texts of a model card: each a string or a list of strings, None where one is not given.

    The values are those of conf/release/card.yaml. Raises CheckpointError for others.
    """

    description: Any
    intended_use: Any
    limitations: Any
    ethical_considerations: Any
    license: str | None
    license_link: str | None
    out_of_scope: Any
    authors: Any
    contact: str | None
    citation: str | None
    language: Any
    datasets: Any
    tags: list[str]

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not _is_text(value):
                raise CheckpointError(f"card.{name}={value} is neither a text nor a list of texts.")


TEXTS = tuple(field.name for field in fields(Texts))


@dataclass(frozen=True)
class Result:
    """`metrics` over `samples` images (None: unknown) of a split; `of` names the weights."""

    split: str
    samples: int | None
    metrics: Mapping[str, float]
    of: str


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


def build(
    texts: Mapping[str, Any],
    *,
    version: str,
    model: Mapping[str, Any],
    weights: Mapping[str, Any],
    results: Sequence[Result],
    record: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the card as plain JSON types.

    `model` is the `.config.json` of the release; `weights` has format, dtype, compress, parameters, nonzero
    and sparsity; `record` has data, training and provenance, each empty where nothing is recorded.
    """
    name, training = model["model"]["name"], record["training"]
    tags = ["pytorch", "peakpoint", name, (training.get("optimizer") or {}).get("name")]
    tags += ["pruning", "sparse"] if (weights.get("sparsity") or 0) > 0 else []
    return {
        "name": name,
        "version": version,
        "task": TASK,
        **{name: value for name, value in texts.items() if lines_of(value)},
        "dataset": record["data"].get("name"),
        "performance": dict(results[0].metrics) if results else {},
        "sparsity": weights.get("sparsity"),
        "training_epochs": training.get("epoch"),
        "training_time_hours": training.get("hours"),
        "tags": list(dict.fromkeys([*filter(None, tags), *lines_of(texts.get("tags"))])),
        "results": [vars(result) | {"metrics": dict(result.metrics)} for result in results],
        "weights": dict(weights),
        "model": dict(model),
        **record,
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
