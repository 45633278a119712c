"""conf/release, typed: how a release is made, and what its makers say of it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import CONF
from peakpoint.deployment.inference.form import Form
from peakpoint.trainer.config.check import unknown_key

RELEASE = CONF / "release"
CARD = "card.yaml"


@dataclass(kw_only=True)
class Card:
    """The texts of a model card. Each is a string or a list of strings; None where nothing is said."""

    description: Any = MISSING
    intended_use: Any = MISSING
    limitations: Any = MISSING
    ethical_considerations: Any = MISSING
    license: str | None = MISSING
    license_link: str | None = MISSING
    out_of_scope: Any = MISSING
    authors: Any = MISSING
    contact: str | None = MISSING
    citation: str | None = MISSING
    language: Any = MISSING
    datasets: Any = MISSING
    tags: list[str] = MISSING

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not all(
                isinstance(part, str) for part in (value if isinstance(value, list) else [value or ""])
            ):
                raise CheckpointError(f"card.{field.name}={value} is neither a text nor a list of texts.")


@dataclass(kw_only=True)
class Settings:
    """How a release is made; see conf/release/default.yaml."""

    format: str = MISSING
    dtype: str = MISSING
    compress: bool = MISSING
    golden: int = MISSING
    split: str = MISSING
    tolerance: float = MISSING
    sign: str | None = MISSING
    card: Card = MISSING

    def form(self) -> Form:
        """How the weights are written. Raises CheckpointError for what is no form."""
        return Form(format=self.format, dtype=self.dtype, compress=self.compress)

    def __post_init__(self) -> None:
        _one_of("split", self.split, ("val", "test"))
        for name, least, most in (("golden", 1, 1024), ("tolerance", 0, 1)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise CheckpointError(
                    f"{name}={value} is out of range: it must be between {least} and {most}."
                )


def load(changes: Sequence[str], card: Path | None) -> Settings:
    """conf/release with a file of card texts over it, and then each change, `key=value`.

    Raises CheckpointError: one line that names the key, and the nearest right one.
    """
    texts = OmegaConf.structured(Card)
    for path in [RELEASE / CARD, *([card] if card else [])]:
        texts = _merged(texts, bounded.read_strict_yaml(path), f"{path}: ")
    merged = OmegaConf.structured(Settings)
    merged = _merged(
        merged, bounded.read_strict_yaml(RELEASE / "default.yaml"), "conf/release/default.yaml: "
    )
    merged.card = texts
    for change in changes:
        key, equals, value = change.partition("=")
        if not key or not equals:
            raise CheckpointError(f"--set {change}: give it as key=value, such as --set dtype=float16.")
        layer: Any = _parsed(key, value)
        for name in reversed(key.split(".")):
            layer = {name: layer}
        merged = _merged(merged, layer, "--set ")
    try:
        settings: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise CheckpointError(f"{RELEASE}: {error.full_key}: {_first(error)}.") from None
    assert isinstance(settings, Settings)
    return settings


def _parsed(key: str, value: str) -> Any:
    """The value of a change: YAML, but a text of the card as it is, whatever it holds."""
    if key.startswith("card.") and not value.startswith("[") and value != "null":
        return value
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise CheckpointError(f"--set {key}={value} is not a value: {_flat(error)}.") from None


def _merged(base: Any, layer: dict[Any, Any], where: str) -> Any:
    try:
        return OmegaConf.merge(base, OmegaConf.create(bounded.literal(layer)))
    except OmegaConfBaseException as error:
        key, node = str(error.key), error.parent_node
        if node is not None and error.msg and "not in" in error.msg:
            prefix = (error.full_key or key).removesuffix(key)
            raise CheckpointError(where + unknown_key(prefix, key, map(str, node))) from None
        raise CheckpointError(f"{where}{error.full_key}: {_first(error)}.") from None


def _flat(error: Exception) -> str:
    return " ".join(str(error).split())


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise CheckpointError(f"{name}={value} is not a choice: it must be one of {', '.join(known)}.")
