"""The model card of a release, as plain JSON types: what its makers say, and what the record holds.

Pure; cardpage.py makes the page for people of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peakpoint.base.errors import CheckpointError

TASK = "image-classification"
REQUIRED = ("description", "intended_use", "limitations", "ethical_considerations", "license")
"""What nobody but the makers can say, and no release goes without."""


TEXTS = (
    *REQUIRED,
    *("license_link", "out_of_scope", "authors", "contact", "citation", "language", "datasets", "tags"),
)
"""What is said, each a text or a list of them."""


@dataclass(frozen=True)
class Result:
    """`metrics` over `samples` images (None: not known) of a split, and of which weights: `of`."""

    split: str
    samples: int | None
    metrics: Mapping[str, float]
    of: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the record says of a release, as plain values; a mapping is empty where it says nothing.

    `model` is the `.config.json` of the release; `weights` has format, dtype, compress, parameters, nonzero
    and sparsity; `data`, `training` and `provenance` are as runrecord.py fills them.
    """

    version: str
    model: Mapping[str, Any]
    weights: Mapping[str, Any]
    results: Sequence[Result]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    provenance: Mapping[str, Any]


def check(texts: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError naming every required text that is missing; `where` says where to write it."""
    missing = [name for name in REQUIRED if not lines_of(texts.get(name))]
    if missing:
        names = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[1:] else missing)
        raise CheckpointError(f"The model card lacks {names}: write {where}.")


def lines_of(value: Any) -> list[str]:
    """A text, or a list of them, without what is blank or still to be written."""
    texts = value if isinstance(value, list | tuple) else [value]
    found = [str(text).strip() for text in texts if text is not None]
    return [text for text in found if text.strip(".?-_ ") and text.upper() not in ("TODO", "TBD", "FIXME")]


def build(texts: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    """The card as plain JSON types. Names that the guide uses are at the top."""
    said = {name: value for name, value in texts.items() if lines_of(value)}
    name = facts.model["model"]["name"]
    return {
        "name": name,
        "version": facts.version,
        "task": TASK,
        **said,
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
    """A card of any form, as the library's users give it, in the form that a page is made of.

    What is no text that a page has a place for is under `more`.
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
