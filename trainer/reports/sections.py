"""What a page consists of: sections with words, tables and charts, as plain text until it is rendered."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from peakpoint.base.disk_space import in_words
from peakpoint.trainer.reports.charts.drawing import Chart, available

MISSING_CHARTS = "Charts need matplotlib, of the extra `report`: pip install 'peakpoint[report]'."


@dataclass(frozen=True)
class Cell:
    """A cell whose text is for people and whose `value` it is sorted by."""

    text: str
    value: float

    def __str__(self) -> str:
        return self.text


def bytes_cell(count: float | None) -> Cell | None:
    """Return the cell of a number of bytes."""
    return None if count is None else Cell(in_words(round(count)), count)


@dataclass(frozen=True)
class Table:
    """A table; `sortable`: its headings are buttons that sort it."""

    head: Sequence[str]
    rows: Sequence[Sequence[object]]
    sortable: bool = False

    @property
    def kinds(self) -> list[str]:
        """Return the class of each column: `n` of numbers, `t` of long texts, or none."""
        columns = ([row[n] for row in self.rows if row[n] is not None] for n in range(1, len(self.head)))
        return ["", *map(_kind, columns)]


def _kind(cells: Sequence[object]) -> str:
    texts = [str(cell) for cell in cells if isinstance(cell, str | Cell) and cell != "nan"]
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
