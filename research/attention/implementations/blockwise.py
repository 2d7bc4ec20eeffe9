"""Exact attention in blocks: memory linear in length, forwards and backwards, in plain JAX.

Queries and keys are cut into blocks. ``Mask.blocks`` classifies the grid of block pairs before
anything runs: forbidden pairs are never visited, wholly allowed ones are computed without looking
at the mask. The online softmax is that of Milakov & Gimelshein 2018, algorithm 3; the forward and
backward loops are those of Dao 2023 (FlashAttention-2), algorithms 1 and 2. Only the output and the
logarithm of each row's sum are saved for the backward pass. A normalizer that looks at each score
by itself runs in the same loops without the sums.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Integer

from research.attention.errors import Unsupported
from research.attention.implementations.blocks import at, index_blocks, plan, visit
from research.attention.parts.biases import Bias
from research.attention.parts.masks import Mask, full, static
from research.attention.parts.normalizers import (
    FORBIDDEN,
    Normalizer,
    Sigmoid,
    Smoothed,
    Softmax,
    SquaredRelu,
    softmax,
)
from research.attention.parts.scores import Score, scaled_dot

# Above FORBIDDEN and below any real score: a row maximum that starts here gives forbidden keys the
# weight exp(FORBIDDEN - LOWEST) = 0 even in rows where nothing is allowed.
LOWEST = 0.1 * FORBIDDEN

# Normalizers whose weights have no divisor and depend on one score each.
ELEMENTWISE = (Sigmoid, SquaredRelu)

# Measured on CPU; products of this size run at full speed there and fit the caches.
Q_BLOCK, KV_BLOCK = 256, 512


class _Shape(NamedTuple):
    """The static part of the problem."""

    batch: int
    heads: int
    kv_heads: int
    q_block: int
    kv_block: int


class _Index(NamedTuple):
    """Positions of queries (rows, q_block) and keys (columns, kv_block), and which keys exist."""

    q: Any
    kv: Any
    real: Any


def lacks(score: Score, mask: Mask, biases: tuple[Bias, ...], normalizer: Normalizer) -> str:
    """The part of this mechanism that blockwise cannot compute; empty if there is none."""
    if not isinstance(normalizer, (Softmax, Smoothed, *ELEMENTWISE)):
        return f"normalizer {normalizer.name!r}"
    if not score.has_dot_form:
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
        normalizer: from scores to weights; its float leaves get gradients.
        q_index: absolute positions of the queries; 0 .. T-1 if None. Blocks are skipped only where
            positions are known while tracing.
        kv_index: absolute positions of the keys; 0 .. S-1 if None.
        block_size: queries and keys to a block; 0 chooses. Does not change the result.

    Returns:
        (B, T, H, Dv) in the dtype of q. A query with no allowed key gets zeros. It can be
        differentiated once, in reverse mode.

    Raises:
        Unsupported: the score has no dot form, or the normalizer is neither of the softmax family
            nor element-wise.
    """
    if missing := lacks(score, mask, biases, normalizer):
        raise Unsupported(f"blockwise attention lacks {missing}; use implementation 'dense'")
    (b, t, h, _), (s, kv_heads) = q.shape, k.shape[1:3]
    out_dtype = q.dtype
    q, k = score.as_dot(q, k)  # ty: ignore[not-iterable]  # checked by lacks()
    q_block, kv_block = min(block_size or Q_BLOCK, t), min(block_size or KV_BLOCK, s)
    shape = _Shape(b, h, kv_heads, q_block, kv_block)
    rows, columns = index_blocks(q_index, t, q_block), index_blocks(kv_index, s, kv_block)
    real = index_blocks(None, s, kv_block, pad=-1) >= 0
    visits = plan(mask, rows, columns, real)
    index = _Index(*(jnp.asarray(x) for x in (rows, columns, real)))
    q_blocks = _cut(q.reshape(b, t, kv_heads, h // kv_heads, -1), q_block)
    k_blocks, v_blocks = _cut(k[:, :, :, None], kv_block), _cut(v[:, :, :, None], kv_block)
    parts, extra = _parts(biases, normalizer, h)
    out = _core(shape, q_blocks, k_blocks, v_blocks, parts, extra, mask, index, visits)
    return _join(out, shape, t).astype(out_dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sharpen(Bias):
    """score * by."""

    by: float = static()

    def __call__(self, score: Array, head: Any, q_index: Any, kv_index: Any) -> Array:
        return score * self.by


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _LogSigmoid(Bias):
    """log sigma(score): the softmax of it is sigma normalized to a sum of 1."""

    def __call__(self, score: Array, head: Any, q_index: Any, kv_index: Any) -> Array:
        return jax.nn.log_sigmoid(score)


class _Parts(NamedTuple):
    """What is done to a block of raw scores: biases, then an element-wise normalizer if any."""

    biases: tuple[Bias, ...]
    elementwise: Normalizer | None


def _parts(
    biases: tuple[Bias, ...], normalizer: Normalizer, heads: int
) -> tuple[_Parts, Array | None]:
    """The mechanism, and the extra logit of each head (H,) in the divisor of its softmax."""
    if isinstance(normalizer, ELEMENTWISE):
        return _Parts(biases, normalizer), None
    if isinstance(normalizer, Smoothed):
        return _Parts((*biases, _LogSigmoid()), None), None
    if normalizer.sharpening != 1.0:  # ty: ignore[missing-attribute]  # it is a Softmax
        biases = (*biases, _Sharpen(normalizer.sharpening))  # ty: ignore[missing-attribute]
    extra = normalizer.extra_logit
    return _Parts(biases, None), None if extra is None else jnp.broadcast_to(extra, (heads,))


def _cut(x: Array, block: int) -> Array:
    """(B, N, K, G, D) -> (blocks, B*K, G*block, D), zeros at the end.

    The query heads of a group become rows of one matrix, so that their keys are not repeated.
    """
    b, n, kv_heads, group, width = x.shape
    count = -(-n // block)
    x = jnp.pad(x, ((0, 0), (0, count * block - n), (0, 0), (0, 0), (0, 0)))
    x = x.reshape(b, count, block, kv_heads, group, width)
    return x.transpose(1, 0, 3, 4, 2, 5).reshape(count, b * kv_heads, group * block, width)


def _join(x: Array, shape: _Shape, length: int) -> Array:
    """The inverse of ``_cut`` for queries: (blocks, B*K, G*block, D) -> (B, length, H, D)."""
    count, width = x.shape[0], x.shape[-1]
    x = x.reshape(count, shape.batch, shape.heads, shape.q_block, width).transpose(1, 0, 3, 2, 4)
    return x.reshape(shape.batch, -1, shape.heads, width)[:, :length]


def _dot(equation: str, x: Array, y: Array, dtype: Any) -> Array:
    return jnp.einsum(equation, x, y, preferred_element_type=dtype)


def _finish(shape, raw, parts, mask, index, row, column, masked):
    """From raw scores (B*K, G*q, k) of one block to final ones, or to element-wise weights."""
    biases, elementwise = parts
    if not biases and not masked and elementwise is None:
        return raw
    scores = raw.reshape(shape.batch, shape.heads, shape.q_block, shape.kv_block)
    q_index, kv_index = at(index.q, row)[:, None], at(index.kv, column)[None, :]
    head = jnp.arange(shape.heads)[:, None, None]
    for bias in biases:
        scores = bias(scores, head, q_index, kv_index)
    allowed = mask(q_index, kv_index) & at(index.real, column) if masked else None
    if elementwise is not None:
        scores, _ = elementwise.parts(scores, allowed)
    elif allowed is not None:
        scores = jnp.where(allowed, scores, FORBIDDEN)
    return scores.reshape(raw.shape)


def _finish_transposed(shape, raw, *rest):
    """``_finish`` for raw scores (B*K, k, G*q)."""
    return jnp.swapaxes(_finish(shape, jnp.swapaxes(raw, 1, 2), *rest), 1, 2)


def _extra_rows(shape: _Shape, extra: Array) -> Array:
    """The extra logit of each row of a block: (H,) -> (B*K, G*q_block, 1)."""
    group = shape.heads // shape.kv_heads
    rows = jnp.broadcast_to(
        extra.reshape(shape.kv_heads, group, 1), (shape.batch, shape.kv_heads, group, shape.q_block)
    )
    return rows.reshape(shape.batch * shape.kv_heads, group * shape.q_block, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _core(shape, q, k, v, parts, extra, mask, index, visits):
    """Attention of blocks: q (rows, B*K, G*q_block, D), k and v (columns, B*K, kv_block, D)."""
    return _forward(shape, q, k, v, parts, extra, mask, index, visits)[0]


def _forward(shape, q, k, v, parts, extra, mask, index, visits):
    """FlashAttention-2, algorithm 1: one row of blocks after the other."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    rows, n, size, _ = q.shape
    zero = jnp.zeros((n, size, 1), dtype)
    # An extra logit is a key that was seen before all others and has the value 0.
    start = (zero + LOWEST, zero) if extra is None else (_extra_rows(shape, extra) + zero, zero + 1)

    def one_row(_, row):
        query = at(q, row)

        def step(column, carry, masked):
            top, total, out = carry
            scores = _dot("nqd,nkd->nqk", query, at(k, column), dtype)
            scores = _finish(shape, scores, parts, mask, index, row, column, masked)
            value = at(v, column)
            if parts.elementwise is not None:
                out = out + _dot("nqk,nkd->nqd", scores.astype(v.dtype), value, dtype)
                return top, total, out
            new_top = jnp.maximum(top, jnp.max(scores, -1, keepdims=True))
            weights = jnp.exp(scores - new_top)
            shrink = jnp.exp(top - new_top)
            total = total * shrink + jnp.sum(weights, -1, keepdims=True)
            out = out * shrink + _dot("nqk,nkd->nqd", weights.astype(v.dtype), value, dtype)
            return new_top, total, out

        out = jnp.zeros((n, size, v.shape[-1]), dtype)
        top, total, out = visit(visits[0], row, step, (*start, out))
        empty = total == 0
        total = jnp.where(empty, 1, total)
        return None, ((out / total).astype(v.dtype), jnp.where(empty, 0, top + jnp.log(total)))

    _, (out, log_sum) = lax.scan(one_row, None, jnp.arange(rows))
    return out, (q, k, v, parts, extra, mask, index, visits, out, log_sum)


def _backward(shape, saved, grad):
    """FlashAttention-2, algorithm 2, with blocks of scores transposed to (keys, queries).

    That way no product contracts the rows of its left operand, which XLA's CPU library does at a
    third of its speed; the gradient of q is summed transposed for the same reason.
    """
    q, k, v, parts, extra, mask, index, visits, out, log_sum = saved
    dtype = log_sum.dtype
    delta = jnp.sum(grad.astype(dtype) * out, -1)[:, :, None, :]
    log_sum = jnp.swapaxes(log_sum, -1, -2)
    leaves, rebuild = _float_leaves(parts)

    def one_column(carry, column):
        key, value = at(k, column), at(v, column)
        key_transposed = jnp.swapaxes(key, -1, -2)

        def step(row, carry, masked):
            dq, dleaves, dk, dv = carry
            query, dout = at(q, row), at(grad, row)

            def finish(raw, leaves):
                where = (mask, index, row, column, masked)
                return _finish_transposed(shape, raw, rebuild(leaves), *where)

            raw = _dot("nkd,nqd->nkq", key, query, dtype)
            scores, pull = jax.vjp(finish, raw, leaves)
            dweights = _dot("nkd,nqd->nkq", value, dout, dtype)
            if parts.elementwise is not None:
                weights, dscores = scores, dweights
            else:
                weights = jnp.exp(scores - at(log_sum, row))
                dscores = weights * (dweights - at(delta, row))
            dv = dv + _dot("nkq,nqd->nkd", weights.astype(v.dtype), dout, dtype)
            draw, dleaf = pull(dscores)
            dleaves = [total + part for total, part in zip(dleaves, dleaf, strict=True)]
            draw = draw.astype(q.dtype)
            dk = dk + _dot("nkq,nqd->nkd", draw, query, dtype)
            dquery = at(dq, row) + _dot("ndk,nkq->ndq", key_transposed, draw, dtype)
            return lax.dynamic_update_index_in_dim(dq, dquery, row, 0), dleaves, dk, dv

        zeros = (jnp.zeros(key.shape, dtype), jnp.zeros(value.shape, dtype))
        *carry, dk, dv = visit(visits[1], column, step, (*carry, *zeros))
        return tuple(carry), (dk.astype(k.dtype), dv.astype(v.dtype))

    dq = jnp.zeros(jnp.swapaxes(q, -1, -2).shape, dtype)
    dleaves = [jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in leaves]
    (dq, dleaves), (dk, dv) = lax.scan(one_column, (dq, dleaves), jnp.arange(k.shape[0]))
    dleaves = [g.astype(x.dtype) for g, x in zip(dleaves, leaves, strict=True)]
    dextra = None if extra is None else _extra_gradient(shape, extra, log_sum, delta)
    dparts = rebuild(dleaves, _no_gradient)
    rest = jax.tree.map(_no_gradient, (mask, index, visits))
    return jnp.swapaxes(dq, -1, -2).astype(q.dtype), dk, dv, dparts, dextra, *rest


def _extra_gradient(shape: _Shape, extra: Array, log_sum: Array, delta: Array) -> Array:
    """That of a key of value 0: each row adds -weight * delta. Of padding rows delta is 0."""
    weight = jnp.exp(jnp.swapaxes(_extra_rows(shape, extra), 1, 2) - log_sum)
    group = shape.heads // shape.kv_heads
    by_row = (weight * delta).reshape(-1, shape.batch, shape.kv_heads, group, shape.q_block)
    return -jnp.sum(by_row, (0, 1, 4)).reshape(extra.shape).astype(extra.dtype)


def _float_leaves(tree: Any) -> tuple[list[Array], Callable[..., Any]]:
    """The leaves that have gradients, and what puts others in their place.

    The second is ``rebuild(new, rest)``; ``rest`` is applied to the leaves without gradients.
    """
    leaves, structure = jax.tree.flatten(tree)
    at = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]

    def rebuild(new: list[Array], rest: Callable[[Any], Any] = lambda x: x) -> Any:
        filled = dict(zip(at, new, strict=True))
        return structure.unflatten(
            [filled[i] if i in filled else rest(x) for i, x in enumerate(leaves)]
        )

    return [jnp.asarray(leaves[i]) for i in at], rebuild


def _no_gradient(leaf: Any) -> Any:
    """The cotangent of what is not differentiated, in the form ``custom_vjp`` wants."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(jnp.shape(leaf), jax.dtypes.float0)


_core.defvjp(_forward, _backward)
