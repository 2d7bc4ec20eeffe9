"""Exact attention in blocks: memory linear in length, forwards and backwards, in plain JAX.

Queries and keys are cut into blocks. ``Mask.blocks`` classifies the grid of block pairs before
anything runs: forbidden pairs are never visited, wholly allowed ones are computed without looking
at the mask. The online softmax is that of Milakov & Gimelshein 2018, algorithm 3; the forward and
backward loops are those of Dao 2023 (FlashAttention-2), algorithms 1 and 2. Only the output and the
logarithm of each row's sum are saved for the backward pass.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from research.attention.biases import Bias
from research.attention.errors import Unsupported
from research.attention.masks import Mask, full
from research.attention.normalizers import FORBIDDEN, Normalizer, softmax
from research.attention.scores import Score, scaled_dot

# Above FORBIDDEN and below any real score: a row maximum that starts here gives forbidden keys the
# weight exp(FORBIDDEN - LOWEST) = 0 even in rows where nothing is allowed.
LOWEST = 0.1 * FORBIDDEN


class _Shape(NamedTuple):
    """The static part of the problem. Lengths are those before padding."""

    batch: int
    heads: int
    kv_heads: int
    q_block: int
    kv_block: int
    kv_length: int
    ragged: bool


class _Visits(NamedTuple):
    """Which blocks to visit: for each row, full ones in order[start:middle], masked to stop."""

    order: Any
    start: Any
    middle: Any
    stop: Any


def lacks(score: Score, mask: Mask, biases: tuple[Bias, ...], normalizer: Normalizer) -> str:
    """The part of this mechanism that blockwise cannot compute; empty if there is none."""
    if normalizer.name != softmax.name:
        return f"normalizer {normalizer.name!r}"
    tiny = jax.ShapeDtypeStruct((1, 1, 1, 2), jnp.float32)
    if jax.eval_shape(score.as_dot, tiny, tiny) is None:
        return f"score {type(score).__name__} (it has no dot-product form)"
    return ""


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    *,
    score: Score = scaled_dot(),  # noqa: B008 (frozen and without arrays)
    mask: Mask = full(),  # noqa: B008
    biases: tuple[Bias, ...] = (),
    normalizer: Normalizer = softmax,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
    block_size: int = 0,
) -> Float[Array, "B T H Dv"]:
    """The same function as ``dense.attend``, in memory linear in T and S.

    Args:
        q: as in ``dense.attend``, like all arguments not described here.
        k: keys.
        v: values.
        score: how a query and a key match.
        mask: which pairs are allowed.
        biases: applied to the scores in order; their float leaves get gradients.
        normalizer: from scores to weights.
        q_index: absolute positions of the queries; 0 .. T-1 if None. Blocks are skipped only where
            positions are known while tracing.
        kv_index: absolute positions of the keys; 0 .. S-1 if None.
        block_size: queries and keys to a block; 0 chooses.

    Returns:
        (B, T, H, Dv) in the dtype of q. A query with no allowed key gets zeros.

    Raises:
        Unsupported: the score has no dot form or the normalizer is not softmax.
    """
    if missing := lacks(score, mask, biases, normalizer):
        raise Unsupported(f"blockwise attention lacks {missing}; use implementation 'dense'")
    (b, t, h, _), (s, kv_heads) = q.shape, k.shape[1:3]
    q, k = score.as_dot(q, k)
    block = block_size or 512
    q_block, kv_block = min(block, t), min(block, s)
    shape = _Shape(b, h, kv_heads, q_block, kv_block, s, s % kv_block != 0)
    rows, columns = (
        _index_blocks(q_index, t, q_block),
        _index_blocks(kv_index, s, kv_block),
    )
    visits = _plan(mask, rows, columns, shape)
    index = (jnp.asarray(rows), jnp.asarray(columns))
    group = h // kv_heads
    q_blocks = _split(q.reshape(b, t, kv_heads, group, -1), q_block)
    k_blocks = _split(k[:, :, :, None], kv_block)
    v_blocks = _split(v[:, :, :, None], kv_block)
    out = _core(shape, q_blocks, k_blocks, v_blocks, biases, mask, index, visits)
    return _join(out, shape, t).astype(q.dtype)


def _split(x: Array, block: int) -> Array:
    """(B, N, K, G, D) -> (blocks, B*K, G*block, D), zeros at the end."""
    b, n, kv_heads, group, width = x.shape
    count = -(-n // block)
    x = jnp.pad(x, ((0, 0), (0, count * block - n), (0, 0), (0, 0), (0, 0)))
    x = x.reshape(b, count, block, kv_heads, group, width)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(count, b * kv_heads, group * block, width)


def _join(x: Array, shape: _Shape, length: int) -> Array:
    """The inverse of ``_split`` for queries: (blocks, B*K, G*block, D) -> (B, length, H, D)."""
    count, width = x.shape[0], x.shape[-1]
    x = x.reshape(count, shape.batch, shape.heads, shape.q_block, width).transpose(1, 0, 3, 2, 4)
    return x.reshape(shape.batch, -1, shape.heads, width)[:, :length]


def _index_blocks(index: Any, length: int, block: int) -> Any:
    """Positions as (blocks, block). Padding repeats the last one, so that bounds stay tight."""
    index = np.arange(length, dtype=np.int32) if index is None else index
    if not isinstance(index, jax.core.Tracer):
        index = np.asarray(index)
    pad = -length % block
    xp = np if isinstance(index, np.ndarray) else jnp
    return xp.pad(index, (0, pad), mode="edge").reshape(-1, block)


def _plan(mask: Mask, rows: Any, columns: Any, shape: _Shape) -> tuple[_Visits, _Visits]:
    """What to visit: for each row of blocks its columns, and for each column its rows."""
    grid = (len(rows), len(columns))
    if isinstance(rows, np.ndarray) and isinstance(columns, np.ndarray):
        q_lo, q_hi = rows.min(1)[:, None], rows.max(1)[:, None]
        kv_lo, kv_hi = columns.min(1)[None, :], columns.max(1)[None, :]
        some, every = (np.broadcast_to(x, grid) for x in mask.blocks(q_lo, q_hi, kv_lo, kv_hi))
    else:
        some, every = np.ones(grid, bool), np.full(grid, type(mask) is Mask)
    every = every & some
    if shape.ragged:
        every[:, -1] = False
    return _visits(some, every), _visits(some.T, every.T)


def _visits(some: np.ndarray, every: np.ndarray) -> _Visits:
    row, column = np.nonzero(some)
    order = column[np.lexsort((column, ~every[row, column], row))]
    stop = np.cumsum(some.sum(1))
    start = stop - some.sum(1)
    arrays = (order, start, start + every.sum(1), stop)
    # An empty table still needs one entry for compiled code to index.
    order = arrays[0] if order.size else np.zeros(1)
    return _Visits(*(jnp.asarray(a, jnp.int32) for a in (order, *arrays[1:])))


def _visit(visits: _Visits, row: Any, step: Any, carry: Any) -> Any:
    """Runs ``step(column, carry, masked)`` over the visible blocks of one row."""
    start, middle, stop = visits.start[row], visits.middle[row], visits.stop[row]
    carry = lax.fori_loop(start, middle, lambda n, c: step(visits.order[n], c, False), carry)
    return lax.fori_loop(middle, stop, lambda n, c: step(visits.order[n], c, True), carry)


def _biased(
    shape: _Shape,
    raw: Array,
    biases: Any,
    mask: Mask,
    rows: Array,
    columns: Array,
    at: Any,
):
    """Biases, then the mask unless ``at`` is None, on one block of raw scores (B*K, G*q, k)."""
    if not biases and at is None:
        return raw
    scores = raw.reshape(shape.batch, shape.heads, rows.shape[0], columns.shape[0])
    q_index, kv_index = rows[:, None], columns[None, :]
    head = jnp.arange(shape.heads)[:, None, None]
    for bias in biases:
        scores = bias(scores, head, q_index, kv_index)
    if at is not None:
        allowed = mask(q_index, kv_index)
        if shape.ragged:
            allowed &= (at * shape.kv_block + jnp.arange(shape.kv_block) < shape.kv_length)[None, :]
        scores = jnp.where(allowed, scores, FORBIDDEN)
    return scores.reshape(raw.shape)


def _dot(equation: str, x: Array, y: Array, dtype: Any) -> Array:
    return jnp.einsum(equation, x, y, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _core(shape, q, k, v, biases, mask, index, visits):
    return _forward(shape, q, k, v, biases, mask, index, visits)[0]


def _forward(shape, q, k, v, biases, mask, index, visits):
    dtype = jnp.promote_types(q.dtype, jnp.float32)

    def one_row(_, row):
        query = q[row]

        def step(column, carry, masked):
            top, total, out = carry
            scores = _dot("nqd,nkd->nqk", query, k[column], dtype)
            at = column if masked else None
            scores = _biased(shape, scores, biases, mask, index[0][row], index[1][column], at)
            new_top = jnp.maximum(top, jnp.max(scores, -1, keepdims=True))
            weights = jnp.exp(scores - new_top)
            shrink = jnp.exp(top - new_top)
            total = total * shrink + jnp.sum(weights, -1, keepdims=True)
            out = out * shrink + _dot("nqk,nkd->nqd", weights.astype(v.dtype), v[column], dtype)
            return new_top, total, out

        n, size = query.shape[:2]
        start = (
            jnp.full((n, size, 1), LOWEST, dtype),
            jnp.zeros((n, size, 1), dtype),
            jnp.zeros((n, size, v.shape[-1]), dtype),
        )
        top, total, out = _visit(visits[0], row, step, start)
        empty = total == 0
        out = out / jnp.where(empty, 1, total)
        return None, (
            out,
            jnp.where(empty, 0, top + jnp.log(jnp.where(empty, 1, total))),
        )

    _, (out, log_sum) = lax.scan(one_row, None, jnp.arange(q.shape[0]))
    return out, (q, k, v, biases, mask, index, visits, out, log_sum)


def _backward(shape, saved, grad):
    q, k, v, biases, mask, index, visits, out, log_sum = saved
    dtype = out.dtype
    delta = jnp.sum(grad * out, -1, keepdims=True)
    low = grad.astype(v.dtype)

    def one_column(carry, column):
        key, value = k[column], v[column]

        def step(row, carry, masked):
            dq, dbias, dk, dv = carry
            query, dout = q[row], low[row]
            raw = _dot("nqd,nkd->nqk", query, key, dtype)
            at = column if masked else None

            def biased(raw, biases):
                return _biased(shape, raw, biases, mask, index[0][row], index[1][column], at)

            scores, pull = jax.vjp(biased, raw, biases)
            weights = jnp.exp(scores - log_sum[row])
            dv = dv + _dot("nqk,nqd->nkd", weights.astype(v.dtype), dout, dtype)
            dweights = _dot("nqd,nkd->nqk", dout, value, dtype)
            draw, dleaf = pull(weights * (dweights - delta[row]))
            dbias = jax.tree.map(_accumulate, dbias, dleaf)
            draw = draw.astype(q.dtype)
            dk = dk + _dot("nqk,nqd->nkd", draw, query, dtype)
            dq = dq.at[row].add(_dot("nqk,nkd->nqd", draw, key, dtype))
            return dq, dbias, dk, dv

        zeros = (jnp.zeros(key.shape, dtype), jnp.zeros(value.shape, dtype))
        dq, dbias, dk, dv = _visit(visits[1], column, step, (*carry, *zeros))
        return (dq, dbias), (dk.astype(k.dtype), dv.astype(v.dtype))

    carry = (jnp.zeros(q.shape, dtype), jax.tree.map(_zero, biases))
    (dq, dbias), (dk, dv) = lax.scan(one_column, carry, jnp.arange(k.shape[0]))
    rest = jax.tree.map(_no_gradient, (mask, index, visits))
    dbias = jax.tree.map(
        lambda g, b: _no_gradient(b) if g is None else g.astype(jnp.result_type(b)),
        dbias,
        biases,
        is_leaf=lambda x: x is None,
    )
    return dq.astype(q.dtype), dk, dv, dbias, *rest


def _zero(leaf):
    return jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf))


def _accumulate(total, part):
    return total + part


def _no_gradient(leaf):
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0)


_core.defvjp(_forward, _backward)
