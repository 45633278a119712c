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
