"""Cuts arrays into blocks, and plans which to visit, using `Mask.classify_blocks` while tracing."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array

from research.attention.parts.masks import Mask


class Visits(NamedTuple):
    """Blocks to visit for each row i, in compressed form.

    order[start[i]:middle[i]] are the columns that are allowed entirely, and
    order[middle[i]:stop[i]] the columns in which the mask has to be applied.
    """

    order: Any
    start: Any
    middle: Any
    stop: Any


def cut_into_blocks(x: Array, kv_heads: int, block: int, pieces: int = 1) -> Array:
    """Cuts (B, N, H, D) into blocks (blocks, B*K, G*block, D), zero-padded after each piece.

    Args:
      x: queries; or keys or values, for which H = K and G = 1.
      kv_heads: K.
      block: positions per block.
      pieces: number of equal parts of the N positions; no block spans two of them.
    """
    b, n, heads, width = x.shape
    length, group = n // pieces, heads // kv_heads
    count = -(-length // block)
    x = x.reshape(b, pieces, length, kv_heads, group, width)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, count * block - length), *[(0, 0)] * 3))
    x = x.reshape(b, pieces * count, block, kv_heads, group, width).transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(pieces * count, b * kv_heads, group * block, width)


def join_blocks(
    x: Array, batch: int, heads: int, block: int, length: int, pieces: int = 1
) -> Array:
    """Inverts `cut_into_blocks`: (blocks, B*K, G*block, D) -> (B, length, H, D)."""
    count, width = x.shape[0], x.shape[-1]
    x = x.reshape(count, batch, heads, block, width).transpose(1, 0, 3, 2, 4)
    x = x.reshape(batch, pieces, -1, heads, width)[:, :, : length // pieces]
    return x.reshape(batch, length, heads, width)


def index_blocks(index: Any, length: int, block: int, pad: int | None = None) -> Any:
    """Returns positions as (blocks, block), as numpy where they are known while tracing.

    Padding repeats the last position unless `pad` is given, so the bounds of a block stay tight.
    """
    index = np.arange(length, dtype=np.int32) if index is None else index
    if not isinstance(index, Tracer):
        index = np.asarray(index)
    xp = np if isinstance(index, np.ndarray) else jnp
    width = (0, -length % block)
    if pad is None:
        return xp.pad(index, width, mode="edge").reshape(-1, block)
    return xp.pad(index, width, constant_values=pad).reshape(-1, block)


def plan(mask: Mask, rows: Any, columns: Any, real: np.ndarray) -> tuple[Visits, Visits]:
    """Returns the visits by row (which columns) and by column (which rows)."""
    grid = (len(rows), len(columns))
    if isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray):
        q_lo, q_hi = rows.min(1)[:, None], rows.max(1)[:, None]
        kv_lo, kv_hi = columns.min(1)[None, :], columns.max(1)[None, :]
        some, every = (
            np.broadcast_to(x, grid) for x in mask.classify_blocks(q_lo, q_hi, kv_lo, kv_hi)
        )
    else:
        some, every = np.ones(grid, bool), np.zeros(grid, bool)
    every = every & some & real.all(1)
    found = list_visits(some, every), list_visits(some.T, every.T)
    by_row, by_column = (Visits(*(jnp.asarray(x) for x in visits)) for visits in found)
    return by_row, by_column


def list_visits(some: np.ndarray, every: np.ndarray) -> Visits:
    """Returns the visits for (rows, columns) booleans: any pair allowed, all pairs allowed."""
    row, column = np.nonzero(some)
    order = column[np.lexsort((column, ~every[row, column], row))]
    stop = np.cumsum(some.sum(1))
    start = stop - some.sum(1)
    # Compiled code indexes `order` even if there is nothing to visit, so it is never empty.
    order = order if order.size else np.zeros(1)
    return Visits(*(x.astype(np.int32) for x in (order, start, start + every.sum(1), stop)))


def visit(visits: Visits, row: Any, step: Any, carry: Any) -> Any:
    """Runs `step(column, carry, masked)` over the visible blocks of one row; returns the carry."""
    start, middle, stop = (take(x, row) for x in visits[1:])

    def run(masked):
        return lambda n, c: step(take(visits.order, n), c, masked)

    return lax.fori_loop(middle, stop, run(True), lax.fori_loop(start, middle, run(False), carry))


def take(x: Array, i: Any) -> Array:
    """Returns x[i] for a traced i."""
    return lax.dynamic_index_in_dim(x, i, keepdims=False)
