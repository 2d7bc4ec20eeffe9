"""Draws the attention or CTC posteriors of a speech model, as Chan et al. 2016, figure 2.

The features of the recording are on top and the model's weights or posteriors below, on a shared
time axis in seconds.
"""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from research.drawing.chart import INK, MUTED, RULE, styled
from research.errors import UserError
from research.runs import store
from research.tasks.speech.features import SHIFT_SECONDS
from research.tasks.task import PAD, WORDS

SECOND = 2.2
"""Inches per second; the width is between NARROW and WIDE."""
NARROW, WIDE = 5.0, 24.0
ROW = 0.2
"""Inches per row of the lower panel; its height is between SHORT and TALL."""
SHORT, TALL = 1.0, 7.0
ABOVE = 1.5
"""Height of the upper panel in inches."""
LABEL = 0.15
"""Inches that the name of a row needs: if rows are thinner, only some are named."""
LONGEST = 16
"""Maximum number of characters of a name to show."""


def frames_per_position(frames: int, positions: int) -> int:
    """Returns the number of frames per position of the memory: 1, 2, 4, ...

    Args:
      frames: S, the number of frames of the features.
      positions: number of positions of the memory: S halved repeatedly, rounding up.
    """
    number = 1
    while -(-frames // number) > positions:
        number *= 2
    return number


def speech_figure(
    features: Float[np.ndarray, "S F"],
    weights: Float[np.ndarray, "H T R"],
    pieces: Sequence[str],
    seconds_per_frame: float = SHIFT_SECONDS,
) -> Figure:
    """Returns a figure of the weights, averaged over heads, with one row per piece.

    Black is the largest weight, which the figure states: weights spread over many frames are small.

    Args:
      features: log-mel features.
      weights: attention of T pieces over R positions of the memory; see `frames_per_position`.
      pieces: pieces of the transcript, EOS included.
      seconds_per_frame: time between frames of the features.

    Call it and save the figure inside `research.drawing.chart.styled`.

    Raises UserError if there are no heads.
    """
    if not len(weights):
        raise UserError("there is nothing to draw: this model has no attention.")
    figure, axes = _panels(features, len(pieces), seconds_per_frame)
    mean = weights.mean(0)
    _image(axes, mean, len(features), seconds_per_frame, float(mean.max()))
    axes.set_title(f"black: {mean.max():.2g}", loc="right", fontsize=7, color=MUTED, pad=3)
    _name_rows(axes, pieces)
    return figure


def labels_figure(
    features: Float[np.ndarray, "S F"],
    posteriors: Float[np.ndarray, "R V"],
    pieces: Sequence[str],
    seconds_per_frame: float = SHIFT_SECONDS,
) -> Figure:
    """Returns a figure of the CTC posteriors of every label that is the most probable in a frame.

    The labels of the greedy labelling are written between the panels, each where it begins. The
    blank has a row of its own.

    Args:
      features: log-mel features.
      posteriors: probability of each label at each of R positions of the memory; PAD is the blank.
      pieces: text of all V labels.
      seconds_per_frame: time between frames of the features.

    Call it and save the figure inside `research.drawing.chart.styled`.
    """
    best = posteriors.argmax(1)
    used = [PAD, *dict.fromkeys(int(label) for label in best if label >= WORDS)]
    figure, axes = _panels(features, len(used), seconds_per_frame)
    _image(axes, posteriors[:, used].T, len(features), seconds_per_frame, 1.0)
    _name_rows(axes, ["blank", *(pieces[label] for label in used[1:])])
    each = frames_per_position(len(features), len(best)) * seconds_per_frame
    runs = itertools.groupby(range(len(best)), key=best.__getitem__)
    starts = [(next(frames), int(label)) for label, frames in runs if label >= WORDS]
    top = axes.secondary_xaxis("top")
    top.set_xticks([(i + 0.5) * each for i, _ in starts], [_short(pieces[v]) for _, v in starts])
    top.tick_params(length=3, labelcolor=INK, labelsize=8)
    top.spines["top"].set_visible(False)
    return figure


def _panels(
    features: Float[np.ndarray, "S F"], rows: int, seconds_per_frame: float
) -> tuple[Figure, Axes]:
    """Returns a figure with the features drawn on top, and the empty axes below for `rows` rows."""
    seconds = len(features) * seconds_per_frame
    width = min(max(SECOND * seconds, NARROW), WIDE)
    height = min(max(ROW * rows, SHORT), TALL)
    figure = Figure(figsize=(width, ABOVE + height + 0.35))
    above, below = figure.subplots(
        2, sharex=True, height_ratios=(ABOVE, height), gridspec_kw={"hspace": 0.35 / height}
    )
    low, high = np.percentile(features, (1, 99))
    above.imshow(
        features.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=low,
        vmax=max(high, low + 1e-6),
        extent=(0.0, seconds, 0.0, features.shape[1]),
        interpolation="nearest",
    )
    above.set_ylabel("mel band")
    below.set_xlabel("seconds")
    for axes in (above, below):
        axes.grid(False)
        axes.tick_params(labelcolor=MUTED)
    below.set_xlim(0.0, seconds)
    return figure, below


def _image(
    axes: Axes, rows: np.ndarray, frames: int, seconds_per_frame: float, black: float
) -> None:
    """Draws rows of values from 0 to `black` over the positions of the memory, top row first."""
    number, positions = rows.shape
    end = positions * frames_per_position(frames, positions) * seconds_per_frame
    limits = axes.get_xlim()
    axes.imshow(
        rows,
        aspect="auto",
        cmap="Greys",
        vmin=0.0,
        vmax=black,
        extent=(0.0, end, number - 0.5, -0.5),
        interpolation="nearest",
    )
    # The last position may extend beyond the last frame, so restore the limits.
    axes.set_xlim(limits)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Labels the rows, or every nth row if there are too many to be legible."""
    height = min(max(ROW * len(names), SHORT), TALL)
    every = max(1, int(np.ceil(LABEL * len(names) / height)))
    chosen = range(0, len(names), every)
    axes.set_yticks(list(chosen), [_short(names[i]) for i in chosen])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    if every == 1:
        for i in range(1, len(names)):
            axes.axhline(i - 0.5, color=RULE, linewidth=0.4)


def _short(name: str) -> str:
    """Returns the name cut to LONGEST characters, or a visible symbol if it is blank."""
    name = name.strip() or "␣"
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def write_speech_alignment(
    features: Float[np.ndarray, "S F"],
    weights: Float[np.ndarray, "H T R"],
    pieces: Sequence[str],
    path: Path,
    seconds_per_frame: float = SHIFT_SECONDS,
) -> None:
    """Writes `speech_figure` as a PNG file, atomically."""
    with styled():
        _write(speech_figure(features, weights, pieces, seconds_per_frame), path)


def write_speech_labels(
    features: Float[np.ndarray, "S F"],
    posteriors: Float[np.ndarray, "R V"],
    pieces: Sequence[str],
    path: Path,
    seconds_per_frame: float = SHIFT_SECONDS,
) -> None:
    """Writes `labels_figure` as a PNG file, atomically."""
    with styled():
        _write(labels_figure(features, posteriors, pieces, seconds_per_frame), path)


def _write(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(
        buffer, format="png", dpi=150, facecolor="white", bbox_inches="tight", pad_inches=0.1
    )
    store.write_bytes(path, buffer.getvalue())
