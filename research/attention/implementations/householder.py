"""Scores k_j^T H_{j+1} ... H_i q_i with a matrix H_t = I - beta_t w_t w_t^T of each token.

The products of the matrices of a chunk of tokens have a closed form, the UT transform (Joffrin and
Low 2006; Yang et al. 2025, "PaTH Attention", section 3): for the rows q_i, k_j and w_l,

  scores = Q K^T - tril(Q W^T) T stril(W K^T),  T = (I + diag(beta) stril(W W^T))^-1 diag(beta).

Arrays are float32 or wider. H query heads share K heads of keys and of matrices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research.attention.mixers.linear.delta_rule import unit_lower_inverse
from research.attention.parts.masks import Mask

BLOCK = 64


class Turns(NamedTuple):
    """What the tokens' matrices are made of.

    Attributes:
      w: directions.
      beta: strengths.
    """

    w: Float[Array, "B T K D"]
    beta: Float[Array, "B T K"]


class Chunk(NamedTuple):
    """A chunk of tokens, as it is for itself and for what is before and after it.

    Attributes:
      scores: of its queries on its keys; those of later keys are no scores.
      queries: its queries as keys before the chunk see them, H_1 ... H_i q_i.
      keys: its keys as queries after the chunk see them, H_T ... H_{j+1} k_j.
      fold: I - H_T ... H_1.
    """

    scores: Float[Array, "B H T T"]
    queries: Float[Array, "B H T D"]
    keys: Float[Array, "B K T D"]
    fold: Float[Array, "B K D D"]


def chunk(q: Float[Array, "B T H D"], k: Float[Array, "B T K D"], turns: Turns) -> Chunk:
    """Returns the products of a chunk, in time cubic in T; `q` is scaled."""
    (batch, length, heads, width), kv_heads = q.shape, k.shape[2]
    k, w = jnp.swapaxes(k, 1, 2), jnp.swapaxes(turns.w, 1, 2)
    beta = jnp.swapaxes(turns.beta, 1, 2)
    # Queries of one key head are rows of one matrix.
    q = jnp.swapaxes(q, 1, 2).reshape(batch, kv_heads, -1, length, width)
    strict = jnp.tril(w @ w.mT, -1) * beta[..., None]
    solve = unit_lower_inverse(strict) * beta[..., None, :]
    held, of_w = solve @ jnp.tril(w @ k.mT, -1), solve @ w
    reads = jnp.tril(q @ w[:, :, None].mT)
    scores = q @ k[:, :, None].mT - reads @ held[:, :, None]
    queries = q - reads @ of_w[:, :, None]
    flat = (batch, heads, length)
    return Chunk(
        scores.reshape(*flat, length), queries.reshape(*flat, width), k - held.mT @ w, of_w.mT @ w
    )


def with_cached(
    chunk: Chunk, keys: Float[Array, "B S K D"], place: Int[Array, " S"]
) -> Float[Array, "B H T S"]:
    """Returns the scores of a chunk's queries on cached keys, some of which may be its own.

    Args:
      chunk: the chunk.
      keys: as queries of the chunk's first token see them, before its matrix is applied; those of
        the chunk are not used.
      place: of each key in the chunk; negative for earlier tokens.
    """
    own = jnp.take(chunk.scores, jnp.clip(place, 0), axis=-1, mode="clip")
    return jnp.where(place >= 0, own, _grouped(chunk.queries, jnp.swapaxes(keys, 1, 2)))


def turned(chunk: Chunk, keys: Float[Array, "B S K D"]) -> Float[Array, "B S K D"]:
    """Returns the keys of earlier tokens as queries after the chunk see them."""
    return keys - jnp.einsum("bskd,bkde->bske", keys, chunk.fold)


def _grouped(q: Float[Array, "B H T D"], k: Float[Array, "B K S D"]) -> Float[Array, "B H T S"]:
    """Returns q . k for query heads that share key heads."""
    (b, h, t, d), kv_heads = q.shape, k.shape[1]
    scores = q.reshape(b, kv_heads, -1, d) @ k.mT
    return scores.reshape(b, h, t, -1)


def blockwise(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T K D"],
    v: Float[Array, "B T K Dv"],
    turns: Turns,
    mask: Mask,
    block: int = 0,
) -> Float[Array, "B T H Dv"]:
    """Computes causal softmax attention with these scores in blocks, as the paper does (section 3).

    Each block of queries goes back over the blocks of keys, turned by the matrices of every block
    that it has passed. Memory grows with T: the backward pass computes the scores again.

    Args:
      q: queries, scaled.
      k: keys.
      v: values, of any dtype.
      turns: what the tokens' matrices are made of.
      mask: allowed pairs, of which no key is later than its query.
      block: tokens per block; 0: BLOCK.

    Returns:
      The outputs in float32 or wider; zeros for a query with no allowed key.
    """
    length, size = q.shape[1], min(block or BLOCK, q.shape[1])
    count = -(-length // size)

    def split(x):
        # Padding has beta = 0 and no key that is allowed.
        x = jnp.pad(x, ((0, 0), (0, count * size - length), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    chunks = jax.vmap(chunk)(split(q), split(k), Turns(*map(split, turns)))
    values = jnp.swapaxes(split(v.astype(q.dtype)), 2, 3)
    place = jnp.arange(size)

    @jax.checkpoint
    def row(n: Int[Array, ""]) -> Float[Array, "B H C Dv"]:
        at = n * size + place[:, None]

        def allowed(column):
            keys = column * size + place
            return mask(at, keys[None, :]) & (keys < length) & (keys <= at)

        @jax.checkpoint
        def step(carry, distance):
            queries, sums = carry
            column = jnp.maximum(n - distance, 0)
            passed = jax.tree.map(lambda a: a[column], chunks)
            seen = allowed(column) & (distance <= n)
            sums = _add(sums, _grouped(queries, passed.keys), values[column], seen)
            return (_through(queries, passed.fold), sums), None

        mine = jax.tree.map(lambda a: a[n], chunks)
        start = _add(_nothing(mine.scores, values), mine.scores, values[n], allowed(n))
        (_, sums), _ = jax.lax.scan(step, (mine.queries, start), jnp.arange(1, count))
        return _divided(sums)

    out = jax.lax.map(row, jnp.arange(count))
    out = jnp.moveaxis(out, (0, 3), (1, 2))
    return out.reshape(out.shape[0], count * size, *out.shape[3:])[:, :length]


class _Sums(NamedTuple):
    """What softmax has summed so far: the largest score, the divisor and the weighted values."""

    largest: Any  # (B, H, C, 1)
    divisor: Any  # (B, H, C, 1)
    weighted: Any  # (B, H, C, Dv)


def _nothing(scores, values):
    rows = (*scores.shape[:3], 1)
    lowest = jnp.full(rows, jnp.finfo(scores.dtype).min, scores.dtype)
    weighted = jnp.zeros((*rows[:3], values.shape[-1]), scores.dtype)
    return _Sums(lowest, jnp.zeros_like(lowest), weighted)


def _add(sums, scores, values, allowed):
    """Returns the sums with the scores of one more block of keys, values (B, K, C, Dv)."""
    hidden = jnp.finfo(scores.dtype).min
    scores = jnp.where(allowed, scores, hidden)
    largest = jax.lax.stop_gradient(jnp.maximum(sums.largest, scores.max(-1, keepdims=True)))
    weights = jnp.where(allowed, jnp.exp(scores - largest), 0)
    kept = jnp.exp(sums.largest - largest)
    (b, h, t, s), kv_heads = weights.shape, values.shape[1]
    added = (weights.reshape(b, kv_heads, -1, s) @ values).reshape(b, h, t, -1)
    divisor = kept * sums.divisor + weights.sum(-1, keepdims=True)
    return _Sums(largest, divisor, kept * sums.weighted + added)


def _divided(sums):
    return sums.weighted / jnp.where(sums.divisor > 0, sums.divisor, 1)


def _through(queries, fold):
    """Returns queries (B, H, C, D) as keys before one more block see them."""
    (b, h, t, d), kv_heads = queries.shape, fold.shape[1]
    grouped = queries.reshape(b, kv_heads, -1, d)
    return queries - (grouped @ fold.mT).reshape(b, h, t, d)
