"""Heat maps of retrieval by depth and length, as Kamradt 2023 draws them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from research.decoding.needle import Cell
from research.drawing.chart import Chart, draw_heat_map, styled, write_chart

PANELS = (("found", "answers that are found"), ("gain", "nats that the fact adds"))
LEAST_SCALE = 0.1
"""Nats at the ends of the colours, at least."""


def needle_figure(cells: Sequence[Cell], title: str) -> Figure:
    """Returns a picture of the answers that are found, and of what the fact adds to them.

    A row for each depth, from the beginning of the text at the top; a column for each length. Call
    it and save the figure inside `research.drawing.chart.styled`.
    """
    lengths = list(dict.fromkeys(cell.length for cell in cells))
    depths = list(dict.fromkeys(cell.depth for cell in cells))
    panel = (max(2.6, 0.5 * len(lengths) + 1.4), max(1.8, 0.3 * len(depths) + 1))
    figure = Figure(figsize=(2 * panel[0], panel[1] + 0.3), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for axes, (name, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        grid = np.full((len(depths), len(lengths)), np.nan)
        for cell in cells:
            place = depths.index(cell.depth), lengths.index(cell.length)
            grid[place] = getattr(cell, name).mean()
        # A fact may also make its answer less probable. Differences that are none stay pale.
        most = max(LEAST_SCALE, float(np.abs(grid).max()))
        draw_heat_map(
            axes, grid, label, ("magma_r", 0, 1) if name == "found" else ("RdBu", -most, most)
        )
        axes.set_xlabel("tokens", fontsize=7)
        axes.set_ylabel("depth of the fact", fontsize=7)
        axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    return figure


def write_needle_picture(cells: Sequence[Cell], title: str, path: Path) -> None:
    """Writes `needle_figure` as a PNG file, atomically."""
    with styled():
        figure = needle_figure(cells, title)
    write_chart(Chart(path.stem, "needle", title, figure), path)
