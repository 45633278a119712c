"""File names from a template such as `{model}_{optimizer}_{data}_epoch{epoch}_acc{accuracy:.2f}`."""

import re
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from peakpoint.base.errors import CheckpointError

LONGEST = 150
"""Characters of a name: with a staged prefix and a number it fits in the 255 of a file system."""

MISSING = "na"
"""Text of a metric without a value."""
MOMENT = ("epoch", "step", "sparsity")
"""Fields of the moment of a save."""


@dataclass(frozen=True)
class Template:
    """A name with fields in braces: facts of the run, the moment (epoch, step, sparsity), and metrics.

    `facts` are those of the run, such as the model's name. A metric without a value is `na`. Characters that
    a file name cannot hold become `_`.
    """

    text: str
    facts: Mapping[str, str | int]

    def stem(self, epoch: int, step: int, sparsity: float | None, metrics: Mapping[str, float]) -> str:
        """Return the name of a checkpoint, without its suffix."""
        values = {**metrics, "epoch": epoch, "step": step, "sparsity": sparsity, **self.facts}
        parts = []
        for literal, field, spec, _ in string.Formatter().parse(self.text):
            value = values.get(field) if field else ""
            parts += [literal, MISSING if value is None else format(value, spec or "")]
        return safe_name("".join(parts))[:LONGEST]

    def check(self, metrics: Collection[str]) -> None:
        """Raise CheckpointError unless every field is known and every name it makes is that of a file."""
        known = [*self.facts, *MOMENT, *metrics]
        try:
            for _, field, spec, conversion in string.Formatter().parse(self.text):
                if field is not None and field not in known:
                    raise ValueError(f"{{{field}}} is not a field; there are: {', '.join(known)}")
                # A width of many digits would take as many bytes of memory.
                if conversion or re.search(r"{|\d{3}", spec or ""):
                    raise ValueError(f"{{{field}}} may have a format such as :.2f, and nothing else")
            stem = self.stem(1, 1, 0.5, dict.fromkeys(metrics, 0.5))
        except ValueError as error:
            raise CheckpointError(f"checkpoint.name={self.text} is not a template: {error}.") from None
        if not stem or stem[0] in ".-" or len(stem) == LONGEST:
            raise CheckpointError(
                f"checkpoint.name={self.text} makes the name {stem or '(empty)'}: let it begin with a letter "
                f"or a digit, and have fewer than {LONGEST} characters."
            )


def file_stem(text: str) -> str:
    """Return a name of a file. Raises CheckpointError unless it has at most LONGEST characters."""
    if not text[:1].isalnum() or len(text) > LONGEST:
        raise CheckpointError(
            f"{text} is not a valid name of a file: it must begin with a letter or a digit and have "
            f"at most {LONGEST} characters."
        )
    return text


def safe_name(text: str) -> str:
    """Return `text` with `_` for anything but letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text)
