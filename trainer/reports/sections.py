"""What a page consists of: sections with words, tables and charts, as plain text until it is rendered."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from peakpoint.trainer.reports.charts.drawing import Chart, available

MISSING_CHARTS = "Charts need matplotlib, of the extra `report`: pip install 'peakpoint[report]'."


@dataclass(frozen=True)
class Table:
    """A table; `sortable`: a click on a heading sorts it."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    sortable: bool = False

    @property
    def kinds(self) -> list[str]:
        """Return the class of each column: `n` of numbers, `t` of long texts, or none."""
        columns = ([row[n] for row in self.rows if row[n] is not None] for n in range(1, len(self.head)))
        return ["", *map(_kind, columns)]


def _kind(cells: Sequence[object]) -> str:
    texts = [cell for cell in cells if isinstance(cell, str) and cell != "nan"]
    if all(text[:1] in set("0123456789-") and len(text) < 24 for text in texts):
        return "n"
    return "t" if max(map(len, texts)) > 24 else ""


@dataclass
class Section:
    """A part of a page under its title; `texts` are long ones by name, folded."""

    title: str
    words: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Page:
    """A title, lines below it, and sections."""

    title: str
    summary: list[str]
    sections: list[Section]

    def __post_init__(self) -> None:
        if not available():
            self.summary.append(MISSING_CHARTS)
