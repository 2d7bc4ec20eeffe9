"""Plots the loss along a long text, as Xiao et al. 2023, figure 3."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from research.decoding.stream_curves import Curve, bin_means, position_bins
from research.drawing.chart import DASHES, MUTED, PALETTE, Chart, styled, write_chart

SIZE = (6.4, 3.6)
"""Inches."""


def stream_figure(curves: Sequence[Curve], window: int, title: str) -> Figure:
    """Returns a figure of nats per token against position, binned, with one line per curve.

    Call it and save the figure inside `research.drawing.chart.styled`.
    """
    figure = Figure(figsize=SIZE)
    axes = figure.add_axes((0.1, 0.14, 0.62, 0.74))
    axes.set_title(title, loc="left", fontsize=9, pad=8)
    bins = position_bins(max(len(curve.losses) for curve in curves))
    for index, curve in enumerate(curves):
        values = bin_means(curve.losses, bins)
        middles = [(low * high) ** 0.5 for low, high in bins[: len(values)]]
        # No markers: they would hide lines that lie on top of each other.
        dash = DASHES[0] if curve.sinks >= 0 else DASHES[1]
        color = PALETTE[index % len(PALETTE)]
        axes.plot(middles, values, color=color, linestyle=dash, label=curve.name)
    axes.axvline(window, color=MUTED, linewidth=0.8, linestyle=DASHES[2])
    axes.annotate(
        f"window {window:,}",
        (window, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(3, -2),
        textcoords="offset points",
        color=MUTED,
        fontsize=7.5,
        va="top",
    )
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("tokens before the one that is predicted")
    axes.set_ylabel("nats per token")
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=8)
    return figure


def write_stream_picture(curves: Sequence[Curve], window: int, title: str, path: Path) -> None:
    """Writes `stream_figure` as a PNG file, atomically."""
    with styled():
        figure = stream_figure(curves, window, title)
    write_chart(Chart(path.stem, "curves", title, figure), path)
