"""Small multiples: similar panels in one figure, with one legend or names at the line ends."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from research.drawing.chart import INK, Chart, arm_style, tag_artists
from research.report.arms import arm_indices, families
from research.report.formatting import value_text
from research.report.judging.axis_points import axis_positions
from research.report.judging.study import Study

SINGLE, WIDE = 4.3, 8.8
"""Width in inches of a figure with one panel, narrow enough for a phone, and with several."""
COLUMNS = 3
LEFT, TOP, BOTTOM, NAMES, EDGE = 0.5, 0.34, 0.52, 1.16, 0.12
"""Margins around a panel in inches; NAMES is the space for arm names beside it."""
LEGEND = 0.26
"""Height of a legend line in inches."""
CHARACTER = 0.073
"""Maximum width of a character in the legend, in inches."""
LIMIT = 24
"""Maximum number of panels in a figure."""


Place = tuple[str, Any]
"""A place to draw: its title, and the value passed to the drawing function."""


@dataclass(frozen=True)
class Panel:
    """A panel: its title, and the function that draws it."""

    title: str
    draw: Callable[[Axes], None]


def grid(
    title: str,
    panels: Sequence[Panel],
    arms: Mapping[str, tuple[int, int]],
    named: bool,
    height: float = 1.9,
) -> Figure:
    """Returns a figure with a grid of panels.

    Args:
      title: title of the figure; a single panel has no title of its own.
      panels: at least one; only the first `LIMIT` are drawn, and then the title says so.
      arms: {arm: (number, color)} for the legend.
      named: whether the panels write the names of arms at the line ends; otherwise the figure has a
        legend.
      height: height of a panel's axes in inches.
    """
    if len(panels) > LIMIT:
        title += f" (the first {LIMIT} of {len(panels)} panels)"
        panels = panels[:LIMIT]
    columns = 2 if len(panels) in (2, 4) else min(COLUMNS, len(panels))
    width = WIDE if columns > 1 else SINGLE
    rows = -(-len(panels) // columns)
    lines = [] if named else _legend_lines(list(arms), width)
    head = (0.3 if len(panels) > 1 else 0.0) + LEGEND * len(lines)
    total = head + rows * (TOP + height + BOTTOM)
    figure = Figure(figsize=(width, total))
    if len(panels) > 1:
        figure.text(0.12 / width, 1 - 0.17 / total, title, fontsize=9.5, color=INK, va="center")
    top = total - (0.3 if len(panels) > 1 else 0.0)
    for i, line in enumerate(lines):
        _legend(figure, line, arms, 1 - (total - top + LEGEND * (i + 0.5)) / total)
    cell = width / columns
    across = cell - LEFT - (NAMES if named else EDGE)
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        bottom = total - head - (row + 1) * (TOP + height + BOTTOM) + BOTTOM
        box = (cell * column + LEFT, bottom, across, height)
        axes = figure.add_axes((box[0] / width, box[1] / total, box[2] / width, box[3] / total))
        text = panel.title if len(panels) > 1 else title
        room = int((across + (NAMES if named else 0)) / 0.075)
        axes.set_title(truncate(text, room), loc="left", fontsize=8.5, pad=6, x=-0.3 / across)
        panel.draw(axes)
    return figure


def truncate(text: str, width: int) -> str:
    """Returns the text on one line, cut to at most `width` characters."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def elide_middle(name: str, width: int) -> str:
    """Returns a name shortened to at most `width` characters by cutting out its middle.

    Names of arms often differ only at the end, so the end is kept.
    """
    name = " ".join(name.split())
    tail = width // 3
    return name if len(name) <= width else f"{name[: width - tail - 1]}…{name[-tail:]}"


def _legend_lines(arms: Sequence[str], width: float) -> list[list[str]]:
    """Distributes the names over legend lines that fit the width of a figure."""
    lines: list[list[str]] = [[]]
    used = 0.0
    for arm in arms:
        needed = 0.45 + CHARACTER * len(elide_middle(arm, 28))
        if lines[-1] and used + needed > width - 0.2:
            lines.append([])
            used = 0.0
        lines[-1].append(arm)
        used += needed
    return lines


def _legend(figure: Figure, line: Sequence[str], arms: Mapping[str, tuple[int, int]], y: float):
    width = figure.get_figwidth()
    x = 0.14
    for arm in line:
        number, color = arms[arm]
        style = arm_style(color)
        ends = [x / width, (x + 0.24) / width]
        # Drawn on the figure itself, because axes spanning the figure would cover the panels.
        figure.add_artist(_line(figure, ends, y, style, number))
        text = figure.text(
            (x + 0.3) / width, y, elide_middle(arm, 28), fontsize=8, color=INK, va="center"
        )
        tag_artists([text], number)
        x += 0.45 + CHARACTER * len(elide_middle(arm, 28))


def _line(figure: Figure, ends: Sequence[float], y: float, style: Mapping, number: int):
    line = Line2D(ends, [y, y], transform=figure.transFigure, **style)
    line.set_markevery([])
    tag_artists([line], number)
    return line


def end_labels(
    axes: Axes, ends: Sequence[tuple[str, float]], arms: Mapping[str, tuple[int, int]]
) -> None:
    """Writes each arm's name at the height of its line end, shifting names that would overlap."""
    if not ends:
        return
    inches = axes.get_position().height * _figure(axes).get_figheight()
    gap = min(0.125 / inches, 1.1 / len(ends))
    low, high = axes.get_ylim()
    placed = sorted(((y - low) / (high - low), name) for name, y in ends)
    heights = separate_heights([y for y, _ in placed], gap)
    for height, (_, name) in zip(heights, placed, strict=True):
        number, color = arms[name]
        text = axes.text(
            1.03,
            height,
            elide_middle(name, 20),
            color=arm_style(color)["color"],
            transform=axes.transAxes,
            va="center",
            fontsize=7,
        )
        tag_artists([text], number)


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    return figure


def separate_heights(heights: Sequence[float], gap: float) -> list[float]:
    """Returns ascending heights in [0, 1], moved slightly so that they are `gap` apart."""
    heights = list(heights)
    # Relaxation: push overlapping neighbours apart, then shift all of them back into [0, 1].
    for _ in range(60):
        for i in range(1, len(heights)):
            overlap = gap - (heights[i] - heights[i - 1])
            if overlap > 0:
                heights[i - 1] -= overlap / 2
                heights[i] += overlap / 2
        shift = max(0.0, -heights[0]) - max(0.0, heights[-1] - 1)
        heights = [h + shift for h in heights]
    return heights


def arm_panels(
    study: Study,
    places: Sequence[Place],
    draw: Callable[[Axes, Any, Sequence[str]], list[tuple[str, float]]],
    has: Callable[[Any, str], bool],
) -> tuple[list[Panel], bool]:
    """Returns a panel for each place and family of arms, and whether panels name their lines.

    Args:
      study: the study.
      places: the places to draw.
      draw: draws the arms of a panel and returns the height of each line end.
      has: returns whether an arm has results at a place.
    """
    found = families(study.experiment)
    arms = arm_indices(study.experiment)
    asked = [
        (place, group, family)
        for place in places
        for family in found
        if (group := [arm for arm in family.arms if has(place[1], arm)])
    ]
    named = len(found) > 1 or len(asked) == 1

    def panel(place: Place, group: Sequence[str], title: str) -> Panel:
        def drawn(axes: Axes) -> None:
            ends = draw(axes, place[1], group)
            if named:
                end_labels(axes, ends, arms)

        return Panel(title, drawn)

    panels = [
        panel(place, group, ", ".join(filter(None, (place[0], family.title))))
        for place, group, family in asked
    ]
    return panels, named


def panel_chart(study: Study, name: str, section: str, title: str, made: tuple) -> Iterator[Chart]:
    """Yields a figure of the panels, unless there are none."""
    panels, named = made
    if panels:
        yield Chart(name, section, title, grid(title, panels, arm_indices(study.experiment), named))


def axis_scale(axes: Axes, values: Sequence) -> None:
    """Sets scale and ticks of the x axis for the values of an experiment's axis."""
    x = axis_positions(values)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers and min(x) > 0 and max(x) / min(x) >= 8:
        axes.set_xscale("log")
    axes.minorticks_off()
    every = max(1, math.ceil(len(x) / 7))
    shown = values[::every]
    # Tuples often differ only at the end.
    width = max(10, 48 // len(shown))
    axes.set_xticks(x[::every], [elide_middle(value_text(v), width) for v in shown])


def slug(text: str) -> str:
    """Returns a text as part of a file name: lower case, with hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "x"
