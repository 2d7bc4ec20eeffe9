"""Scores every attention head of a language model: induction, previous token and others.

Induction is measured on random tokens that come twice (Olsson et al. 2022, "In-context Learning and
Induction Heads", the section on definitions), because on a text its score depends on what repeats
there; the other measures on the same tokens and, if there is one, on a text.
"""

import base64
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from research.drawing.chart import draw_heat_map, figure_bytes, styled
from research.drawing.templates import fill, source_hash
from research.inspect.inspection import legible
from research.interpret.capture import attention_records, record
from research.interpret.head_metrics import SITES, head_measure_sums, measure_labels
from research.models.decoder import Decoder
from research.runs.store import write_bytes, write_text

ON_REPEATED = ("induction", "previous_token", "duplicate_token", "sink")
ON_TEXT = ("previous_token", "sink", "induction", "entropy", "distance")
BOUNDED = ("induction", "previous_token", "duplicate_token", "sink")
"""Measures from 0 to 1."""
ROWS = 4
"""Sequences whose weights exist at once."""
ASSETS = Path(__file__).parent / "assets"


class Column(NamedTuple):
    """A measure of all heads.

    Attributes:
      measure: its name in `MEASURES`.
      data: what it was measured on, "repeated" or "text".
      values: one for each head; NaN where nothing could be measured.
    """

    measure: str
    data: str
    values: Float[np.ndarray, " N"]


class HeadScores(NamedTuple):
    """Scores of all heads.

    Attributes:
      heads: name of each head, "layer 1.0" for head 0 of layer 1.
      columns: the measures.
    """

    heads: Sequence[str]
    columns: Sequence[Column]


def repeated_tokens(
    vocab_size: int, length: int, rows: int, seed: int = 0
) -> Int[np.ndarray, "B T"]:
    """Returns random tokens, of which the second half is the first again.

    Args:
      vocab_size: V; tokens are drawn from all of them.
      length: T, even.
      rows: B.
      seed: of the random numbers.
    """
    half = np.random.default_rng(seed).integers(0, vocab_size, (rows, length // 2))
    return np.concatenate([half, half], 1).astype(np.int32)


def head_scores(
    model: Decoder, params: Any, tokens: Int[np.ndarray, "B T"], measures: Sequence[str], data: str
) -> HeadScores:
    """Returns measures of all heads of a decoder over some sequences.

    Args:
      model: the decoder.
      params: its parameters.
      tokens: the sequences.
      measures: names in `MEASURES` of self-attention.
      data: what the sequences are, for the columns.

    Raises UserError for a model without attention weights.
    """
    shape: Any = jax.ShapeDtypeStruct((1, tokens.shape[1]), jnp.int32)
    labels = measure_labels(model, {"inputs": shape}, measures)
    sums: dict[str, list[Any]] = {name: [] for name in measures}
    for start in range(0, len(tokens), ROWS):
        part = jnp.asarray(tokens[start : start + ROWS])
        for name, (total, count) in _sums(model, tuple(measures), params, part).items():
            sums[name].append((np.asarray(total, np.float64), np.asarray(count, np.float64)))
    columns = []
    for name in measures:
        total, count = (np.sum([pair[i] for pair in sums[name]], 0) for i in (0, 1))
        values = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        columns.append(Column(name, data, values))
    return HeadScores(labels[f"{measures[0]}_by_head"], columns)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(model: Decoder, measures: tuple[str, ...], params: Any, tokens: jax.Array) -> Any:
    batch = {"inputs": tokens}
    recorded = record(model, params, batch, SITES)[1]
    found = head_measure_sums(attention_records(recorded), batch, measures)
    return {name: tuple(found[f"{name}_by_head"]) for name in measures}


def table(scores: HeadScores) -> str:
    """Returns the scores as lines separated by tabs, a header first."""
    header = "\t".join(["head", *(f"{c.measure} ({c.data})" for c in scores.columns)])
    rows = [
        "\t".join([head, *(f"{column.values[i]:.4f}" for column in scores.columns)])
        for i, head in enumerate(scores.heads)
    ]
    return "\n".join([header, *rows]) + "\n"


def figure(scores: HeadScores) -> Figure:
    """Returns a picture of each measure: a row for each layer, a column for each head."""
    layers = [head.rpartition(".")[0] for head in scores.heads]
    names = list(dict.fromkeys(layers))
    most = max(layers.count(name) for name in names)
    columns = scores.columns
    across = min(len(columns), 4)
    down = -(-len(columns) // across)
    panel = (max(1.6, 0.2 * most + 0.9), max(1.2, 0.2 * len(names) + 0.7))
    drawn = Figure(figsize=(panel[0] * across, panel[1] * down), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = list(drawn.subplots(down, across, squeeze=False).flat)
    for axis, column in zip(axes, columns, strict=False):
        grid = np.full((len(names), most), np.nan)
        for value, name, head in zip(column.values, layers, scores.heads, strict=True):
            grid[names.index(name), int(head.rpartition(".")[2])] = value
        title = f"{column.measure.replace('_', ' ')}\n({column.data})"
        ends = (0.0, 1.0) if column.measure in BOUNDED else (None, None)
        draw_heat_map(axis, grid, title, ("magma_r", *ends))
        axis.set_xlabel("head", fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=6)
        axis.set_xticks(range(0, most, max(1, most // 8)))
    for axis in axes[len(columns) :]:
        axis.set_visible(False)
    return drawn


def write_heads(scores: HeadScores, title: str, folder: Path) -> list[Path]:
    """Writes heads.tsv, heads.png and the page heads.html; returns their paths."""
    with styled():
        png = figure_bytes(figure(scores))
    style = (ASSETS / "heads.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; img-src data:; style-src '{source_hash(style)}'"
    order = np.argsort(-np.nan_to_num(scores.columns[0].values))
    page = fill(
        ASSETS / "heads.html",
        {
            "title": legible(title),
            "policy": policy,
            "style": Markup(style),
            "picture": base64.b64encode(png).decode("ascii"),
            "columns": [(c.measure.replace("_", " "), c.data) for c in scores.columns],
            "rows": [
                (scores.heads[i], [f"{column.values[i]:.3f}" for column in scores.columns])
                for i in order
            ],
        },
    )
    paths = [folder / f"heads.{ending}" for ending in ("tsv", "png", "html")]
    write_text(paths[0], table(scores))
    write_bytes(paths[1], png)
    write_text(paths[2], page)
    return paths
