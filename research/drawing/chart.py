"""Shared style of all charts, and their output as files and as themeable SVG for the page.

Colours are those of Okabe and Ito (legible with every common colour blindness) without yellow,
which vanishes on white; the reference arm is black. Arms also differ in marker and dash. In the
page, the same figure takes its colours from CSS variables, so that it follows the light or dark
theme.
"""

import html
import io
import re
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from research.runs import store

INK, MUTED, RULE = "#1b1e23", "#646a73", "#e3e5e8"
PALETTE = ("#1b1e23", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
MARKERS = "os^DvPX<"
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)))

VARIABLES = {
    **{color: f"var(--arm-{i})" for i, color in enumerate(PALETTE)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
}
"""CSS variables that replace the colours in the page."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    # Arm names are shown verbatim: a "$" does not start a formula.
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "attest",
    # Embed TrueType fonts (type 42), which journals require, instead of matplotlib's type 3.
    "pdf.fonttype": 42,
}


@dataclass(frozen=True)
class Chart:
    """One chart of a report.

    Attributes:
      name: file stem, unique in the report.
      section: "outcome", "frontier", "axes", "curves", "slices", "steps" or "rates".
      title: title for the heading and for screen readers.
      figure: the matplotlib figure.
    """

    name: str
    section: str
    title: str
    figure: Figure


@contextmanager
def styled() -> Generator[None]:
    """Applies the style within the context, in which figures must be both drawn and saved.

    matplotlib reads its settings at both times.
    """
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Characters that the font lacks become boxes in the PNG; the HTML page shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def arm_style(index: int) -> dict:
    """Returns colour, marker and line style of the arm at `index`."""
    n = len(PALETTE)
    return {
        "color": PALETTE[index % n],
        "marker": MARKERS[index % n],
        "linestyle": DASHES[index // n % len(DASHES)],
    }


def tag_artists(artists: Iterable, index: int) -> None:
    """Tags the artists of an arm, so that the page can highlight it."""
    for artist in artists:
        artist.set_gid(f"arm-{index}")


def draw_heat_map(
    axes: Axes,
    grid: Float[np.ndarray, "rows columns"],
    title: str,
    scale: tuple[str, float | None, float | None],
) -> None:
    """Draws a small heat map with its colour bar; NaN stays empty.

    Args:
      axes: where to draw.
      grid: the values.
      title: its title.
      scale: name of the colour map, and the values at its ends; None: those of the grid.
    """
    colours, least, most = scale
    shown = axes.imshow(grid, cmap=colours, vmin=least, vmax=most, aspect="auto")
    axes.set_title(title, fontsize=8)
    axes.tick_params(labelsize=6, length=0)
    axes.grid(False)
    assert axes.figure is not None
    axes.figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)


FORMATS = ("png", "svg", "pdf")
"""File formats that a chart can be written in."""


def write_chart(chart: Chart, path: Path) -> None:
    """Writes the chart atomically, in the format given by the suffix of `path`."""
    store.write_bytes(path, figure_bytes(chart.figure, path.suffix.removeprefix(".")))


def figure_bytes(figure: Figure, kind: str = "png") -> bytes:
    """Returns the bytes of a figure on white, in a format of `FORMATS`.

    PNG has twice the resolution of the page and 256 colors, which takes a third of the bytes. SVG
    and PDF keep text as text. Dates are left out, so that equal figures give equal bytes.
    """
    buffer = io.BytesIO()
    options: dict[str, Any] = {
        "png": {"dpi": 150},
        "svg": {"metadata": {"Date": None}},
        "pdf": {"metadata": {"CreationDate": None}},
    }[kind]
    with styled():
        # A long name may extend beyond the edge; "tight" makes room for it.
        figure.savefig(
            buffer,
            format=kind,
            facecolor="white",
            bbox_inches="tight",
            pad_inches=0.1,
            **options,
        )
    return _fewer_colors(buffer) if kind == "png" else buffer.getvalue()


def _fewer_colors(png: io.BytesIO) -> bytes:
    smaller = io.BytesIO()
    with Image.open(png) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            smaller, format="png", optimize=True, dpi=(150, 150)
        )
    return smaller.getvalue()


def svg(chart: Chart) -> str:
    """Returns the chart as an `<svg>` element to embed in a page.

    Its colours are CSS variables (--ink, --muted, --rule, --arm-N), its text inherits the font of
    the page, its ids are unique to the chart, and elements of an arm have a `data-arm` attribute.
    """
    buffer = io.StringIO()
    with styled():
        FigureCanvasSVG(chart.figure)
        chart.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # A style element would apply to the whole page; page.css contains its rule instead.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    return re.sub(r"<[^>]*>", lambda tag: _themed(tag[0], chart), text).strip()


def _themed(tag: str, chart: Chart) -> str:
    """Rewrites the colours, ids and links of one tag. Text between tags, such as names, is kept."""
    if tag.startswith("<svg"):
        box = re.search(r'viewBox="[\d. ]+"', tag)
        return f'<svg role="img" aria-label="{html.escape(chart.title)}" {box[0] if box else ""}>'
    tag = re.sub(r'\bid="arm-(\d+)"', r'data-arm="\1"', tag)
    # Referenced ids (markers, clip paths) are hashes: prefix them. Other ids are only names: drop.
    tag = re.sub(r'\bid="([mpC][0-9a-f_]{6,})"', rf'id="{chart.name}-\1"', tag)
    tag = re.sub(rf' id="(?!{chart.name}-)[^"]*"', "", tag)
    tag = re.sub(r'xlink:href="#', f'href="#{chart.name}-', tag)
    tag = tag.replace("url(#", f"url(#{chart.name}-").replace("font-family: 'DejaVu Sans'; ", "")
    tag = re.sub(r"\d+\.\d{3,}", lambda digits: f"{float(digits[0]):.2f}", tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda color: VARIABLES.get(color[0], color[0]), tag)
