"""report.html: a run, or several, on one page that needs no network, with its charts beside it as files.

Everything that comes from a run is escaped by jinja2, and the page's own policy lets a browser load nothing
and run no script but the one that sorts tables. Without matplotlib the page has its tables.
"""

import base64
import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from peakpoint.base.errors import CheckpointError, UserError, os_reason
from peakpoint.base.files import write_atomic
from peakpoint.base.terminal import escaped
from peakpoint.base.text import utc_now
from peakpoint.trainer.reports import run_page, study, study_page
from peakpoint.trainer.reports.charts import drawing
from peakpoint.trainer.reports.charts.drawing import Chart
from peakpoint.trainer.reports.sections import Page
from peakpoint.trainer.reports.study import Result

PAGE, FOLDER = "report.html", "report"
TEMPLATES = Path(__file__).parent / "templates"
LONGEST = 2000
"""Characters of a cell or a line."""


def write(paths: Iterable[Path], out: Path, *, refresh: int | None = None) -> Path:
    """Write `<out>/report.html` of runs and sweeps, and `<out>/report/` with its charts as PNG and SVG.

    Returns the path of the page, which a browser loads again every `refresh` seconds. Raises UserError for a
    path that is no run, and for a failed write.
    """
    paths = list(paths)
    try:
        if len(paths) == 1 and study.is_run(paths[0]):
            found = run_page.of_run(paths[0])
        else:
            found = study_page.of_results(study.read_results(paths), paths)
    except CheckpointError as error:
        raise UserError(str(error)) from None
    return _write(found, out, refresh)


def write_study(results: Sequence[Result], folder: Path) -> Path:
    """Write the page of the results of a sweep into its folder; returns and raises as `write`."""
    return _write(study_page.of_results(results, [folder]), folder, None)


def _write(page: Page, out: Path, refresh: int | None) -> Path:
    folder = out / FOLDER
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is not a folder: move it away, so that the charts can be written there.")
    try:
        charts = [chart for section in page.sections for chart in section.charts]
        pictures = {chart.name: drawing.svg(chart) for chart in charts}
        _write_charts(charts, pictures, folder)
        write_atomic(out / PAGE, _html(page, pictures, refresh))
    except OSError as error:
        raise UserError(f"{out / PAGE} cannot be written: {os_reason(error)}.") from None
    return out / PAGE


def _html(page: Page, pictures: Mapping[str, str], refresh: int | None) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_plain
    )
    environment.filters["svg"] = lambda chart: Markup(pictures[chart.name])
    script = (TEMPLATES / "sort.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        title=page.title,
        summary=page.summary,
        sections=page.sections,
        style=Markup(drawing.variables() + (TEMPLATES / "style.css").read_text()),
        script=Markup(script),
        script_digest=f"sha256-{digest}",
        refresh=refresh,
        written=utc_now()[:19].replace("T", " "),
        version=importlib.metadata.version("peakpoint"),
    )


def _plain(value: Any) -> Any:
    """Return a value as it is shown: a text of a run without what a terminal or a browser would obey."""
    if type(value) is str:
        return escaped(value, keep="\n")[: 200 * LONGEST if "\n" in value else LONGEST]
    return "-" if value is None else value


def _write_charts(charts: Sequence[Chart], pictures: Mapping[str, str], folder: Path) -> None:
    """Replace the folder of charts at once; without a chart there is none."""
    staged, old = (folder.with_name(f".{FOLDER}.{end}.{os.getpid()}") for end in ("new", "old"))
    try:
        if charts:
            staged.mkdir()
        for chart in charts:
            (staged / f"{chart.name}.svg").write_text(drawing.alone(pictures[chart.name]))
            (staged / f"{chart.name}.png").write_bytes(drawing.png(chart))
        if folder.exists():
            folder.rename(old)
        if charts:
            staged.rename(folder)
    finally:
        for left in (staged, old):
            shutil.rmtree(left, ignore_errors=True)
