"""A chart: a figure of matplotlib, and its SVG with the colours of the page and a tooltip for each mark.

matplotlib is imported when a chart is drawn, and never pyplot, which would choose a backend for the process.
"""

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from peakpoint.base.terminal import escaped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#1a1b1c", "#c8c9ca"
COLOURS = ("#1f6fb2", "#c25701", "#2e7d32", "#7b3fa0", "#c62828", "#00797a", "#8a6d00", "#ad1457")
_VARIABLES = {INK: "--ink", GRID: "--grid"} | {c: f"--c{n}" for n, c in enumerate(COLOURS, 1)}
_DARK = ("#6cb6ff", "#ffab5c", "#7fd485", "#c9a0ff", "#ff8a80", "#5fd3d3", "#e3c65b", "#ff80ab")
LONGEST_LABEL = 40
"""Characters of a name in a chart."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK),
    "grid.color": GRID,
    "legend.frameon": False,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@dataclass
class Chart:
    """A drawn figure; `name` is that of its files, `title` its caption, and `tips` the text of each mark."""

    name: str
    title: str
    figure: "Figure"
    tips: dict[str, str] = field(default_factory=dict)

    def mark(self, artist: Any, text: str) -> None:
        """Have a pointer over an artist show a text."""
        name = f"{self.name}-mark-{len(self.tips)}"
        artist.set_gid(name)
        self.tips[name] = escaped(text)[:500]


def available() -> bool:
    """Return whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def variables() -> str:
    """Return the colours as variables of CSS, for a light and a dark page."""
    light = "".join(f"{variable}:{colour};" for colour, variable in _VARIABLES.items())
    dark = "".join(f"--c{n}:{colour};" for n, colour in enumerate(_DARK, 1))
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{--ink:#e8e8e8;--grid:#4a4c4e;{dark}}}}}"
    )


def drawn(
    name: str, title: str, draw: Callable[["Axes", Chart], None], *, size: tuple[float, float] = (5.2, 3.1)
) -> Chart:
    """Return a chart of one pair of axes, on which `draw` has drawn; its size is in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine()
        figure = Figure(figsize=size, layout=layout)
        chart = Chart(name, title, figure)
        axes = figure.subplots()
        axes.grid(alpha=0.6, lw=0.6)
        axes.set_axisbelow(True)
        draw(axes, chart)
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1:
            columns = 2 if len(labels) > 4 else min(3, len(labels))
            figure.legend(handles, labels, loc="outside upper left", ncols=columns, fontsize=8)
        layout.execute(figure)
        figure.set_layout_engine("none")  # else each file would find it anew, which is half of its time
    return chart


def png(chart: Chart) -> bytes:
    """Return the picture as PNG, on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    chart.figure.set(dpi=144, facecolor="white")
    return _printed(chart, FigureCanvasAgg(chart.figure).print_png)


def svg(chart: Chart) -> str:
    """Return the picture as SVG with the colours of the page that it is part of."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    chart.figure.set(facecolor="none")
    text = _printed(chart, FigureCanvasSVG(chart.figure).print_svg).decode()
    root = ET.fromstring(text[text.index("<svg") :])
    for part in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(part)
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', text))
    for element in root.iter():
        _adapt(element, chart, used)
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-label", chart.title)
    return ET.tostring(root, encoding="unicode")


def alone(picture: str) -> str:
    """Return the picture of `svg` as a file of its own, which brings the colours itself."""
    return picture.replace(">", f"><style>{variables()}</style>", 1)


def _adapt(element: ET.Element, chart: Chart, used: set[str]) -> None:
    """Give an element the colours of the page, a name that no other chart has, and its tooltip."""
    if tip := chart.tips.get(element.get("id", "")):
        title = ET.Element(f"{{{_SVG}}}title")
        title.text = tip
        element.insert(0, title)
    if (name := element.get("id")) is not None:
        if name in used:
            element.set("id", f"{chart.name}-{name}")
        else:
            del element.attrib["id"]
    for key, value in element.attrib.items():
        new = re.sub(r"url\(#", f"url(#{chart.name}-", value)
        if key == f"{{{_XLINK}}}href" and value.startswith("#"):
            new = f"#{chart.name}-{value[1:]}"
        for colour, variable in _VARIABLES.items():
            new = new.replace(colour, f"var({variable})")
        element.set(key, new)
    if element.tag == f"{{{_SVG}}}text" and "fill:" not in element.get("style", ""):
        element.set("style", f"fill: var(--ink); {element.get('style', '')}")


def _printed(chart: Chart, print_to: Callable[[io.BytesIO], object]) -> bytes:
    """Return a file that a canvas prints. Figure.savefig would draw it twice, to find a layout."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({**STYLE, "svg.hashsalt": chart.name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a glyph that no font has
        print_to(buffer)
    return buffer.getvalue()


def label(text: str) -> str:
    """Return a name that may be a stranger's as a label."""
    plain = escaped(text)
    return plain if len(plain) <= LONGEST_LABEL else f"{plain[: LONGEST_LABEL - 3]}..."


def finite(values: Sequence[float | None], scale: float = 1.0) -> list[float]:
    """Return values with NaN, which leaves a gap, for what is missing, infinite or too large to draw."""
    return [v * scale if v is not None and math.isfinite(v) and abs(v) < 1e30 else math.nan for v in values]
