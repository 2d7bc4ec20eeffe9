"""Draws attention maps for papers: a grid of heads, or one head with its tokens."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from research.drawing.chart import INK, MUTED, RULE, styled
from research.errors import UserError
from research.inspect.inspection import (
    AttentionMap,
    Inspection,
    legible,
    position_labels,
    sorted_by_kind,
)
from research.runs import store

PANEL = 1.15
"""Inches per head in the grid, in both directions."""
CELL = 0.24
"""Inches per token for a single head; the whole map is between SMALL and LARGE."""
SMALL, LARGE = 2.0, 7.0
LABEL = 0.16
"""Inches that a label needs: if cells are smaller, only some are labelled."""
LONGEST = 20
"""Maximum number of characters of a label to show."""
SECONDS = 0.32
"""Inches that a label needs if it is a time."""
PALE, FROM = "#ffffff", 0.08
"""White replaces the light end of magma, which would tint cells with almost no weight."""
NOTHING = "#cbcfd4"
"""Colour of fully masked rows."""


def picture(inspection: Inspection, maps: Sequence[int] = (), heads: Sequence[int] = ()) -> Figure:
    """Returns a figure of one head with labels, or of several heads as a grid without labels.

    Colour encodes the square root of the weight, scaled to the maximum of each head.

    Args:
      inspection: the data to show.
      maps: indices of maps in the order of `sorted_by_kind`, one row each; empty: all.
      heads: indices of heads; empty: all.

    Call it and save the figure inside `research.drawing.chart.styled`.

    Raises UserError for a map or head that does not exist.
    """
    chosen = _chosen("map", maps, sorted_by_kind(inspection.maps))
    if len(chosen) == 1:
        indices = _chosen("head", heads, range(len(chosen[0].weights)))
        if len(indices) == 1:
            return _one(inspection, chosen[0], indices[0])
    most = max(len(one.weights) for one in chosen)
    columns = _chosen("head", heads, range(most))
    return _grid(chosen, columns)


def write_picture(
    inspection: Inspection, path: Path, maps: Sequence[int] = (), heads: Sequence[int] = ()
) -> None:
    """Writes `picture` as a PNG file, atomically."""
    buffer = io.BytesIO()
    with styled():
        figure = picture(inspection, maps, heads)
        FigureCanvasAgg(figure)
        figure.savefig(
            buffer, format="png", dpi=200, facecolor="white", bbox_inches="tight", pad_inches=0.08
        )
    store.write_bytes(path, buffer.getvalue())


def _chosen(what: str, indices: Sequence[int], there: Sequence) -> list:
    if not there:
        raise UserError("there is nothing to draw: this model has no attention.")
    for index in indices:
        if not 0 <= index < len(there):
            raise UserError(f"{what} {index} does not exist: the last one is {len(there) - 1}.")
    return [there[index] for index in indices] or list(there)


def _grid(maps: Sequence[AttentionMap], heads: Sequence[int]) -> Figure:
    figure = Figure(figsize=(PANEL * len(heads), PANEL * len(maps)))
    panels = figure.subplots(
        len(maps), len(heads), squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06}
    )
    for one, row in zip(maps, panels, strict=True):
        row[0].set_ylabel(_short(legible(one.name)), color=INK, rotation=0, ha="right", va="center")
        for head, axes in zip(heads, row, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if head < len(one.weights):
                _image(axes, one.weights[head])
            else:
                axes.set_axis_off()
    numbers = max((one.numbers for one in maps), key=len)
    for head, axes in zip(heads, panels[0], strict=True):
        axes.set_title(f"head {numbers[head]}", color=MUTED, fontsize=8.5, pad=3)
    return figure


def _one(inspection: Inspection, one: AttentionMap, head: int) -> Figure:
    weights = one.weights[head]
    height, width = weights.shape
    inches = [min(max(CELL * number, SMALL), LARGE) for number in (width, height)]
    if one.rows == one.columns:
        inches = [min(inches)] * 2
    figure = Figure(figsize=(inches[0], inches[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    _image(axes, weights)
    rows, columns = (
        position_labels(axis, number, inspection.tokens)
        for axis, number in ((one.rows, height), (one.columns, width))
    )
    across, down = (
        range(0, number, max(1, int(np.ceil(_room(axis) * number / size))))
        for axis, number, size in zip((one.columns, one.rows), (width, height), inches, strict=True)
    )
    axes.set_xticks(list(across), [_short(columns[i]) for i in across], rotation=60, ha="left")
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor")
    axes.set_yticks(list(down), [_short(rows[i]) for i in down])
    axes.tick_params(length=0, labelcolor=INK, labeltop=True, labelbottom=False, top=False)
    axes.set_xlabel(f"{legible(one.name)}, head {one.numbers[head]}", color=MUTED)
    return figure


def _image(axes: Axes, weights: Float[np.ndarray, "T S"]) -> None:
    """Draws the weights of one head; signed weights are blue (negative) to red around white."""
    shares = np.sign(weights) * np.sqrt(np.abs(weights))
    shares = np.ma.masked_invalid(shares)
    limit = float(np.abs(shares).max()) if shares.count() else 0.0
    signed = bool((shares < 0).any())
    axes.imshow(
        shares,
        cmap="RdBu_r" if signed else _magma(),
        vmin=-limit if signed else 0.0,
        vmax=limit or 1.0,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_facecolor(NOTHING)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=RULE)


def _magma() -> Colormap:
    shades = matplotlib.colormaps["magma_r"](np.linspace(FROM, 0.95, 12))
    return LinearSegmentedColormap.from_list("magma on white", [PALE, *shades])


def _room(axis: str) -> float:
    return SECONDS if axis == "audio" else LABEL


def _short(label: str) -> str:
    return label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
