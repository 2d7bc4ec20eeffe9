"""Draws the attention alignment of a translation, as Bahdanau et al. 2015, figure 3."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from research.drawing.chart import INK, MUTED, styled
from research.errors import UserError
from research.runs import store

CELL = 0.26
"""Inches per word, in both directions."""
LONGEST = 24
"""Maximum number of characters of a word to show."""


def select_head(weights: Float[np.ndarray, "H T S"], head: str, layers: int) -> np.ndarray:
    """Returns the weights (T, S) of one head, or their mean over all heads.

    Args:
      weights: weights of the heads of all layers, from the first layer to the last.
      head: "mean" or "layer.head", both from 0: "1.3" is the fourth head of the second layer.
      layers: number of layers that have heads.

    Raises UserError for a head that does not exist, and for a model without attention.
    """
    if not len(weights):
        raise UserError("there is nothing to draw: this model has no attention.")
    if head == "mean":
        return weights.mean(0)
    heads = len(weights) // layers
    layer, dot, number = head.partition(".")
    if not (dot and layer.isdecimal() and number.isdecimal()):
        raise UserError(f"--alignment_head={head!r} must be mean or LAYER.HEAD, such as 0.0.")
    if int(layer) >= layers or int(number) >= heads:
        raise UserError(
            f"--alignment_head={head!r} does not exist: the last one is {layers - 1}.{heads - 1}."
        )
    return weights[int(layer) * heads + int(number)]


def group_into_words(pieces: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Groups token pieces into words: returns each word with the indices of its pieces.

    A word starts at a space, and at each change between alphanumeric and other characters. Special
    tokens, such as "</s>", are words of their own. An empty piece belongs to the word before.
    """
    words: list[tuple[str, list[int]]] = []
    for i, piece in enumerate(pieces):
        if not words or _starts_word(words[-1][0], piece):
            words.append((piece.strip(), [i]))
        else:
            text, indices = words[-1]
            words[-1] = (text + piece.rstrip(), [*indices, i])
    return words


def _starts_word(before: str, piece: str) -> bool:
    if not piece:
        return False
    special = any(p.startswith("<") and p.endswith(">") for p in (before, piece))
    changes = before != "" and before[-1].isalnum() != piece[0].isalnum()
    return special or piece[0].isspace() or changes


def word_weights(
    weights: Float[np.ndarray, "T S"], source: Sequence[str], target: Sequence[str]
) -> tuple[np.ndarray, list[str], list[str]]:
    """Returns the weights between words, the source words and the target words.

    Sums weights over the pieces of a source word and averages them over the pieces of a target
    word, so that rows that sum to one still do.

    Args:
      weights: weights between tokens.
      source: S pieces.
      target: T pieces.
    """
    columns, rows = group_into_words(source), group_into_words(target)
    merged = np.stack([weights[:, indices].sum(1) for _, indices in columns], axis=1)
    merged = np.stack([merged[indices].mean(0) for _, indices in rows], axis=0)
    return merged, [text for text, _ in columns], [text for text, _ in rows]


def alignment_figure(
    weights: Float[np.ndarray, "T S"], source: Sequence[str], target: Sequence[str]
) -> Figure:
    """Returns a figure with source words along the top and target words down the side.

    White is weight 1, black weight 0. Call it and save the figure inside
    `research.drawing.chart.styled`.
    """
    height, width = weights.shape
    figure = Figure(figsize=(CELL * width, CELL * height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(weights, cmap="gray", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(width), [_short(word) for word in source], rotation=60, ha="left")
    axes.set_yticks(range(height), [_short(word) for word in target])
    for label in axes.get_xticklabels():
        label.set_rotation_mode("anchor")
    axes.tick_params(length=0, labelcolor=INK, labeltop=True, labelbottom=False, top=False)
    axes.grid(False)
    # A thin grid separates neighbouring cells of the same grey.
    axes.set_xticks(np.arange(width - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(height - 1) + 0.5, minor=True)
    axes.grid(True, which="minor", color=MUTED, linewidth=0.3)
    axes.tick_params(which="minor", length=0)
    return figure


def _short(word: str) -> str:
    return word if len(word) <= LONGEST else word[: LONGEST - 1] + "…"


def write_alignment(
    weights: Float[np.ndarray, "T S"], source: Sequence[str], target: Sequence[str], path: Path
) -> None:
    """Writes `alignment_figure` as a PNG file, atomically.

    Args:
      weights: weights between words or tokens.
      source: S labels.
      target: T labels.
      path: path of the file.
    """
    buffer = io.BytesIO()
    with styled():
        figure = alignment_figure(weights, source, target)
        FigureCanvasAgg(figure)
        figure.savefig(
            buffer, format="png", dpi=150, facecolor="white", bbox_inches="tight", pad_inches=0.1
        )
    store.write_bytes(path, buffer.getvalue())
