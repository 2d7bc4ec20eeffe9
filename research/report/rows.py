"""Draws figures with one line per arm: each seed as a dot, and differences as intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from research.drawing.chart import INK, MUTED, arm_style, tag_artists
from research.report.facets import WIDE, elide_middle, truncate

LINE = 0.2
"""Height of an arm's line in inches."""
TOP, BOTTOM = 0.3, 0.6
NAMES, COUNTS, GAP, EDGE = 1.75, 0.62, 0.25, 0.15
"""Widths in inches of arm names, of the count column, between columns, and at the edge."""


@dataclass(frozen=True)
class Column:
    """A column of a block: its title, its axis title, and the function that draws an arm's line."""

    title: str
    label: str
    draw: Callable[[Axes, str, float], list]


@dataclass(frozen=True)
class Block:
    """Arms listed from top to bottom, with one or more columns of drawings.

    Attributes:
      title: axis point; "" if there is only one.
      arms: names of the arms, from top to bottom.
      counts: {arm: text on how many of its seeds solved the task}, before the first column.
      columns: at least one column.
    """

    title: str
    arms: Sequence[str]
    counts: Mapping[str, str]
    columns: Sequence[Column]


def stack_blocks(
    title: str, blocks: Sequence[Block], arms: Mapping[str, tuple[int, int]]
) -> Figure:
    """Returns a figure with blocks stacked vertically.

    Args:
      title: title of the figure.
      blocks: at least one block.
      arms: {arm: (number, color)}.
    """
    heights = [LINE * len(block.arms) + 0.1 for block in blocks]
    total = 0.32 + sum(TOP + height + BOTTOM for height in heights)
    figure = Figure(figsize=(WIDE, total))
    figure.text(0.12 / WIDE, 1 - 0.17 / total, title, fontsize=9.5, color=INK, va="center")
    top = total - 0.32
    for block, height in zip(blocks, heights, strict=True):
        bottom = top - TOP - height
        start = NAMES + (COUNTS if any(block.counts.values()) else 0.0)
        across = (WIDE - start - EDGE - GAP * (len(block.columns) - 1)) / len(block.columns)
        for i, column in enumerate(block.columns):
            left = start + i * (across + GAP)
            box = (left / WIDE, bottom / total, across / WIDE, height / total)
            axes = figure.add_axes(box)
            _column(axes, block, column, arms, first=i == 0)
            if i == 0 and block.title:
                place = (0.12 / WIDE, (top - TOP / 2) / total)
                figure.text(*place, truncate(block.title, 40), fontsize=8.5, color=INK, va="center")
        top = bottom - BOTTOM
    return figure


def _column(axes: Axes, block: Block, column: Column, arms: Mapping, first: bool) -> None:
    axes.set_title(column.title, loc="left", fontsize=8.5, pad=6)
    axes.set_xlabel(column.label, fontsize=7.5)
    axes.grid(False)
    axes.grid(True, axis="x")
    axes.set_ylim(len(block.arms) - 0.4, -0.6)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    across = axes.get_position().width * WIDE
    if first and any(block.counts.values()):
        place = (-0.1 / across, 1 + 6 / 72 / (LINE * len(block.arms) + 0.1))
        axes.text(*place, "solved", color=MUTED, ha="right", fontsize=8, transform=axes.transAxes)
    for y, arm in enumerate(block.arms):
        number, _ = arms[arm]
        tag_artists(column.draw(axes, arm, y), number)
        if first:
            said = block.counts.get(arm, "")
            at = -(0.1 + (COUNTS if any(block.counts.values()) else 0.0)) / across
            style: dict = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
            name = axes.text(at, y, elide_middle(arm, 24), color=INK, ha="right", **style)
            counted = axes.text(-0.1 / across, y, said, color=MUTED, ha="right", **style)
            tag_artists([name, counted], number)


def seed_dots(axes: Axes, values: Sequence[float], y: float, color: int, middle: float) -> list:
    """Draws every seed as a dot, and a bar at `middle` if it is finite; returns the artists."""
    style = arm_style(color)
    finite = [v for v in values if math.isfinite(v)]
    # Jitter by multiples of the golden ratio: an even spread that is not random.
    shifts = [y + 0.36 * ((i * 0.618) % 1 - 0.4) for i in range(len(finite))]
    artists: list = axes.plot(
        sorted(finite), shifts, style["marker"], color=style["color"], alpha=0.55, markersize=3.6
    )
    if math.isfinite(middle):
        artists += axes.plot([middle], [y], "|", color=style["color"], markersize=10)
    return artists


def interval_line(axes: Axes, value: float, low: float, high: float, y: float, color: int) -> list:
    """Draws a dot with its interval; returns the artists."""
    style = arm_style(color)
    artists: list = axes.plot([value], [y], style["marker"], color=style["color"], markersize=4.6)
    if math.isfinite(low + high):
        artists += axes.plot([low, high], [y, y], color=style["color"], linewidth=1.3)
    return artists
