"""A linear recurrence with decays, in several forms that compute the same function.

S_t = diag(a_t) S_{t-1} + k_t v_t^T and y_t = S_t^T q_t, where a_t is 1, one number per head, or one
per channel of the keys. Decays are given as logarithms, which are at most 0; minus infinity starts
anew. No form ever takes the exponential of a positive number or divides by a product of decays, so
any decay is safe.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from research.attention.implementations.sharding import context_size
from research.attention.mixers.linear import context_parallel

CHUNK = 64
# The exponentials of these are 0. Log decays are clipped here, because below it nothing remains and
# no gradient flows.
FLOORS = {"float32": -104.0, "float64": -746.0}
# Log decays are split into a multiple of 1 / GRID, whose sums are exact, and a small remainder.
GRID = 16.0

Decay: TypeAlias = Float[Array, "#B T #H"] | Float[Array, "#B T #H D"] | None
Memory: TypeAlias = Float[Array, "B H D Dv"]


def restarted(decay: Decay, places: Int[Array, "B T"] | None, dtype: Any) -> Decay:
    """Returns the log decays with minus infinity at place 0, where S starts anew from zero.

    Args:
      decay: log a_t.
      places: places of the tokens in their segments; None: nothing starts anew.
      dtype: of the result if `decay` is None.
    """
    if places is None:
        return decay
    decay = jnp.zeros((1, 1, 1), dtype) if decay is None else decay
    starts = (places == 0).reshape(*places.shape, *(1,) * (decay.ndim - 2))
    return jnp.where(starts, -jnp.inf, decay)


def parallel(
    q: Float[Array, "B T #H D"],
    k: Float[Array, "B T #H D"],
    v: Float[Array, "B T H Dv"],
    decay: Decay,
    memory: Memory,
) -> tuple[Memory, Float[Array, "B T H Dv"]]:
    """Computes all pairs, quadratic in T (Sun et al. 2023, equation 5; Dao and Gu 2024, section 3).

    Args:
      q: queries. All arguments are float32 or wider.
      k: keys; queries and keys may have a single head that all heads share.
      v: values.
      decay: log a_t, at most 0: None, (B, T, H) or (B, T, H, D).
      memory: S before the first token.

    Returns:
      S after the last token, and the outputs.
    """
    return chunkwise(q, k, v, decay, memory, chunk=q.shape[1])


def chunkwise(
    q: Float[Array, "B T #H D"],
    k: Float[Array, "B T #H D"],
    v: Float[Array, "B T H Dv"],
    decay: Decay,
    memory: Memory,
    chunk: int = CHUNK,
    scan: Callable[..., Any] = lax.scan,
) -> tuple[Memory, Float[Array, "B T H Dv"]]:
    """Computes all pairs within a chunk and passes S between chunks: linear in T.

    Everything is batched over chunks, except the recurrence between them (Yang et al. 2024, GLA,
    section 4.3; Dao and Gu 2024, section 6). Arguments and results are those of `parallel`; T need
    not be a multiple of `chunk`, and `scan` runs the recurrence between chunks.
    """
    length = q.shape[1]
    q, k, v = (split(x, min(chunk, length)) for x in (q, k, v))
    if decay is None:
        y, kept, added, q = _undecayed(q, k, v)
    elif decay.ndim == 3:
        y, kept, added, q = _decayed_by_head(q, k, v, split(decay, min(chunk, length)))
    else:
        y, kept, added, q = _decayed_by_channel(q, k, v, split(decay, min(chunk, length)))

    def step(memory, chunk):
        kept, added = chunk
        return _keep(kept, memory) + added, memory

    memory, before = scan(step, memory, (kept, added))
    y = y + q @ before
    # (N, B, H, C, Dv) to (B, T, H, Dv).
    y = jnp.transpose(y, (1, 0, 3, 2, 4))
    return memory, y.reshape(y.shape[0], -1, *y.shape[3:])[:, :length]


def ring(
    q: Float[Array, "B T #H D"],
    k: Float[Array, "B T #H D"],
    v: Float[Array, "B T H Dv"],
    decay: Decay,
    memory: Memory,
    chunk: int = CHUNK,
) -> tuple[Memory, Float[Array, "B T H Dv"]]:
    """Runs `chunkwise` with tokens sharded over the mesh axis "context"; see `shards`.

    A device's tokens multiply S by the product of their decays. Arguments and results are those of
    `chunkwise`, which runs if there is no such axis.
    """

    def local(q, k, v, decay, memory):
        def scan(step, memory, chunks):
            return context_parallel.scan(step, memory, chunks, whole(chunks[0]), _keep)

        return chunkwise(q, k, v, decay, memory, chunk, scan)

    if context_size() == 1:
        return chunkwise(q, k, v, decay, memory, chunk)
    return context_parallel.over_context(local, (q, k, v, decay), memory)


def _keep(kept, memory):
    return memory if kept is None else kept * memory


def whole(kept: Any) -> Any:
    """Returns the product of the chunks' decay factors, (N, ...); None for no decay."""
    if kept is None:
        return None
    return lax.scan(lambda product, one: (product * one, None), jnp.ones_like(kept[0]), kept)[0]


def recurrent(
    q: Float[Array, "B T #H D"],
    k: Float[Array, "B T #H D"],
    v: Float[Array, "B T H Dv"],
    decay: Decay,
    memory: Memory,
) -> tuple[Memory, Float[Array, "B T H Dv"]]:
    """Runs the recurrence token by token; arguments and results are those of `parallel`."""

    def step(memory, token):
        query, key, value, decay = token
        if decay is not None:
            # (B, H, D, 1), or (B, H, 1, 1) if a head has one decay.
            decay = decay.reshape(*decay.shape[:2], -1, 1)
            memory = jnp.exp(decay) * memory
        memory = memory + key[..., :, None] * value[..., None, :]
        return memory, (query[..., None, :] @ memory)[..., 0, :]

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, decay))
    memory, y = lax.scan(step, memory, tokens)
    return memory, jnp.moveaxis(y, 0, 1)


FORMS = {"parallel": parallel, "chunkwise": chunkwise, "recurrent": recurrent, "ring": ring}


def split(x: Shaped[Array, "B T H *D"], chunk: int) -> Shaped[Array, "N B H C *D"]:
    """Cuts a sequence into chunks; zero padding does not change S."""
    batch, length, *rest = x.shape
    count = -(-length // chunk)
    if count * chunk > length:
        x = jnp.pad(x, [(0, 0), (0, count * chunk - length)] + [(0, 0)] * len(rest))
    x = x.reshape(batch, count, chunk, *rest)
    return jnp.transpose(x, (1, 0, 3, 2, *range(4, x.ndim)))


# `_undecayed`, `_decayed_by_head` and `_decayed_by_channel` take arrays (N, B, H, C, ...). They
# return, with the N chunks in front: the outputs from pairs within a chunk; the factor by which a
# chunk decays S; the term that it adds to S; the queries, decayed from the chunk's start.


def _undecayed(q, k, v):
    scores = jnp.where(np.tri(q.shape[-2], dtype=bool), q @ k.mT, 0.0)
    return scores @ v, None, k.mT @ v, q


def _decayed_by_head(q, k, v, decay):
    since, between, until = products(decay)
    since, until = since[..., None], until[..., None]
    return ((q @ k.mT) * between) @ v, since[..., -1:, :], (k * until).mT @ v, q * since


def products(decay: Float[Array, "*N C"]) -> tuple[Array, Array, Array]:
    """Returns products of decays along a chunk, from their logarithms.

    Products between two tokens are differences of cumulative sums. To avoid cancellation, multiples
    of 1 / GRID, whose sums are exact, are summed separately from the remainders, whose sums are
    small. A single sum would lose a mild decay next to a log decay of -100 to rounding.

    Returns:
      The products from the chunk's start through i, (..., C); after j through i, (..., C, C), zero
      for j > i; and after j through the chunk's end, (..., C).
    """
    decay = jnp.maximum(decay, FLOORS[decay.dtype.name])
    # decay = coarse + (decay - coarse): with `coarse` constant, the remainder carries the gradient.
    coarse = lax.stop_gradient(jnp.round(decay * GRID) / GRID)
    coarse, rest = jnp.cumsum(coarse, -1), jnp.cumsum(decay - coarse, -1)
    apart = coarse[..., :, None] - coarse[..., None, :]
    apart = apart + (rest[..., :, None] - rest[..., None, :])
    # Masked before the exponential, which could overflow above the diagonal, where differences are
    # positive; inf there would make gradients NaN even if masked afterwards.
    between = jnp.exp(jnp.where(np.tri(decay.shape[-1], dtype=bool), apart, -jnp.inf))
    until = jnp.exp((coarse[..., -1:] - coarse) + (rest[..., -1:] - rest))
    return jnp.exp(coarse + rest), between, until


def _decayed_by_channel(q, k, v, decay):
    scores, since, until = channel_scores(q, k, decay)
    kept = jnp.exp(since[..., -1, :, None])
    return scores @ v, kept, (k * jnp.exp(until)).mT @ v, q * jnp.exp(since)


def channel_scores(
    q: Float[Array, "*#N C D"], k: Float[Array, "*#N C D"], decay: Float[Array, "*#N C D"]
) -> tuple[Array, Array, Array]:
    """Returns scores of the pairs within a chunk, with one decay per channel.

    The score of query i and key j <= i is sum_d q_id k_jd a_d, where a_d is the product of the
    decays after j through i; it is zero for j > i.

    Returns:
      The scores (..., C, C), and sums of log decays from the chunk's start through i and after i
      through the chunk's end, (..., C, D) as `decay`.
    """
    # Recomputed in the backward pass, so that the log C rounds of merging are not stored.
    return jax.checkpoint(_channel_scores)(q, k, decay)


def channel_sums(
    decay: Float[Array, "*N C D"],
) -> tuple[Float[Array, "*N C D"], Float[Array, "*N C D"]]:
    """Returns sums of log decays from a chunk's start through i, and after i through its end.

    They add up numbers of one sign, without differences: nothing cancels, and minus infinity, where
    S starts anew, stays what it is.
    """
    after = jnp.concatenate([decay[..., 1:, :], jnp.zeros_like(decay[..., :1, :])], axis=-2)
    until = lax.cumsum(after, axis=decay.ndim - 2, reverse=True)
    return jnp.cumsum(decay, axis=-2), until


def _channel_scores(q, k, decay):
    """Computes `channel_scores`.

    The score of a pair is sum_d q_d k_d exp(sum of log decays between them). It is a matrix product
    of queries and keys only if both are decayed to a common point. For queries in one block and
    keys in the block to its left, that point is the boundary of the blocks, so both factors are at
    most 1. Blocks are merged in pairs until one is left (a stable alternative to the secondary
    chunks of Yang et al. 2024, GLA, section 4.3), so each of log C rounds is a matrix product. All
    sums are over numbers of one sign and are never subtracted, so nothing cancels.
    """
    length = q.shape[-2]
    padding = [(0, 0)] * (q.ndim - 2) + [(0, (1 << (length - 1).bit_length()) - length), (0, 0)]
    q, k, decay = (jnp.pad(x, padding)[..., None, :] for x in (q, k, decay))
    # Blocks of one token: (..., number of blocks, size of blocks, D).
    heads = np.broadcast_shapes(q.shape[:-1], decay.shape[:-1])
    scores = jnp.broadcast_to(jnp.sum(q * k, -1, keepdims=True), (*heads, 1))
    since, until = decay, jnp.zeros_like(decay)
    while q.shape[-3] > 1:
        (_, right), (left, _) = _pairs(q), _pairs(k)
        (first, second), (since0, since1), (until0, until1) = map(_pairs, (scores, since, until))
        across = (right * jnp.exp(since1)) @ (left * jnp.exp(until0)).mT
        above = jnp.concatenate([first, jnp.zeros_like(across)], -1)
        scores = jnp.concatenate([above, jnp.concatenate([across, second], -1)], -2)
        # The last entry of `since` is the sum over its block.
        since = jnp.concatenate([since0, since0[..., -1:, :] + since1], -2)
        until = jnp.concatenate([until0 + since1[..., -1:, :], until1], -2)
        q, k = (x.reshape(*x.shape[:-3], -1, 2 * x.shape[-2], x.shape[-1]) for x in (q, k))
    scores, since, until = (x[..., 0, :length, :] for x in (scores, since, until))
    return scores[..., :length], since, until


def _pairs(x):
    """Splits blocks (..., 2 n, C, D) into the first and the second of each pair, (..., n, C, D)."""
    x = x.reshape(*x.shape[:-3], -1, 2, *x.shape[-2:])
    return x[..., 0, :, :], x[..., 1, :, :]
