"""Log-linear attention: a linear recurrence with one state for each level of a tree of the past.

At place t of its sequence, a token sees its past in buckets: level 0 is the token itself, and level
l > 0 has the places s < t whose binary digits first differ from those of t at the digit of 2^(l-1),
which are 2^(l-1) neighbours or none. This is the partition of a Fenwick tree (Guo et al. 2025,
"Log-Linear Attention", section 3.1). Every bucket has a state S^(l) of its own, and y_t is the sum
over l of w_tl S_t^(l)^T q_t with weights w of the token t, the paper's lambda.

Buckets only ever join: the level of s seen from a later place u is the larger one of the level of s
seen from t and the level of t seen from u. So tokens move from state to state by a level alone, at
any place, and chunks need not begin where the buckets do. The last level has all that is older too,
where there are fewer levels than the length asks for.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from research.attention.implementations.sharding import context_size
from research.attention.mixers.linear import context_parallel, decay

Memory = Float[Array, "B H L D Dv"]
Run = tuple[Memory, Float[Array, "B T H Dv"]]


class Levels(NamedTuple):
    """What a recurrence has to know of the tree.

    Attributes:
      weights: w, of the levels, (B, T, H, L).
      places: places of the tokens in their sequences or segments, int32 (#B, T, 1).
      before: the places of the tokens before them.
    """

    weights: Float[Array, "B T H L"]
    places: Int[Array, "#B T 1"]
    before: Int[Array, "#B T 1"]


class Chunks(NamedTuple):
    """What a recurrence is within chunks, if S is split over levels or not: (chunks, B, H, ...).

    Attributes:
      pairs: weight of token j in the output at i >= j, (C, C).
      reads: what is multiplied with S before the chunk, (C, D).
      writes: what values are multiplied with in S after it, (C, D).
      kept: what S is multiplied with by the whole chunk.
    """

    pairs: Float[Array, "N B H C C"]
    reads: Float[Array, "N B H C D"]
    writes: Float[Array, "N B H C D"]
    kept: Any


def count(length: int) -> int:
    """Returns how many levels a sequence of this length has."""
    return (length - 1).bit_length() + 1


def level(one: Int[Array, "*#N"], other: Int[Array, "*#N"], levels: int) -> Int[Array, "*N"]:
    """Returns the level that the earlier one of two places has, seen from the later one."""
    digits = 32 - lax.clz(one ^ other)
    return jnp.minimum(digits, levels - 1)


def with_levels(memory: Float[Array, "B H D Dv"], levels: int) -> Float[Array, "B H *L D Dv"]:
    """Returns S of each level, all as given; S itself if there are no levels."""
    return jnp.repeat(memory[:, :, None], levels, axis=2) if levels else memory


def levels_of(
    weights: Float[Array, "B T H L"],
    first: Int[Array, ""],
    places: Int[Array, "B T"] | None,
) -> Levels:
    """Returns `Levels` of tokens that start at place `first`, or whose places are given."""
    if places is None:
        places = first + jnp.arange(weights.shape[1], dtype=jnp.int32)[None]
    # Nothing is older than place 0. After a segment's end S starts anew, whatever its level.
    before = jnp.concatenate([jnp.maximum(places[:, :1] - 1, 0), places[:, :-1]], axis=1)
    return Levels(weights, places[..., None], before[..., None])


def merged(up_to: Int[Array, "#B #H"], memory: Memory) -> Memory:
    """Moves what levels up to this one have into it."""
    levels = np.arange(memory.shape[2])[:, None, None]
    up_to = up_to[..., None, None, None]
    joined = jnp.where(levels <= up_to, memory, 0).sum(2, keepdims=True)
    return jnp.where(levels > up_to, memory, jnp.where(levels == up_to, joined, 0))


def _keep(kept, memory):
    """Merges and decays S."""
    factor, up_to = kept
    return factor[:, :, None] * merged(up_to, memory)


def recurrent(
    q: Float[Array, "B T #H D"],
    k: Float[Array, "B T #H D"],
    v: Float[Array, "B T H Dv"],
    log_decay: Float[Array, "#B T H"],
    memory: Memory,
    levels: Levels,
) -> Run:
    """Runs the recurrence token by token (Guo et al. 2025, equation 4, and section 3.3 for decays).

    Args:
      q: queries. All arguments but places are float32 or wider.
      k: keys; queries and keys may have a single head that all heads share.
      v: values.
      log_decay: log a_t, at most 0.
      memory: S of the levels before the first token.
      levels: the weights of the levels and the places.

    Returns:
      S after the last token, and the outputs.
    """
    depth = memory.shape[2]

    def step(memory, token):
        query, key, value, log, (weights, place, before) = token
        kept = jnp.exp(log)[..., None, None], level(before, place, depth)
        memory = _keep(kept, memory)
        memory = memory.at[:, :, 0].add(key[..., :, None] * value[..., None, :])
        return memory, read(query[..., None, :], weights[..., None, :], memory)[..., 0, :]

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, log_decay, levels))
    memory, y = lax.scan(step, memory, tokens)
    return memory, jnp.moveaxis(y, 0, 1)


def parallel(
    q: Float[Array, "B T #H D"],
    k: Float[Array, "B T #H D"],
    v: Float[Array, "B T H Dv"],
    log_decay: Float[Array, "#B T H"],
    memory: Memory,
    levels: Levels,
) -> Run:
    """Computes all pairs, (Q K^T * M_S * M_H) V (Guo et al. 2025, section 3.3).

    M_S has the products of decays, and M_H the weights of the levels. Arguments and results are
    those of `recurrent`.
    """
    return chunkwise(q, k, v, log_decay, memory, levels, chunk=q.shape[1])


def chunkwise(
    q: Float[Array, "B T #H D"],
    k: Float[Array, "B T #H D"],
    v: Float[Array, "B T H Dv"],
    log_decay: Float[Array, "#B T H"],
    memory: Memory,
    levels: Levels,
    chunk: int = decay.CHUNK,
    scan: Callable[..., Any] = lax.scan,
) -> Run:
    """Computes all pairs within a chunk and passes the levels' S between chunks.

    This takes time and memory O(T log T) (Guo et al. 2025, section 3.2). Arguments and results are
    those of `recurrent`; T need not be a multiple of `chunk`, and `scan` runs the recurrence
    between chunks.
    """
    q, k, log_decay = (decay.split(x, min(chunk, v.shape[1])) for x in (q, k, log_decay))
    since, between, until = decay.products(log_decay)
    since, until = since[..., None], until[..., None]
    chunks = Chunks((q @ k.mT) * between, q * since, k * until, since[..., -1:, :])
    return run(chunks, v, memory, levels, _keep, scan)


def ring(
    q: Float[Array, "B T #H D"],
    k: Float[Array, "B T #H D"],
    v: Float[Array, "B T H Dv"],
    log_decay: Float[Array, "#B T H"],
    memory: Memory,
    levels: Levels,
    chunk: int = decay.CHUNK,
) -> Run:
    """Runs `chunkwise` with tokens sharded over the mesh axis "context"; see `shards`.

    Arguments and results are those of `chunkwise`, which runs if there is no such axis.
    """

    def local(q, k, v, log_decay, weights, places, before, memory):
        def scan(step, memory, chunks):
            factors, up_to = chunks[0]
            whole = decay.whole(factors), up_to.max(0)
            return context_parallel.scan(step, memory, chunks, whole, _keep)

        levels = Levels(weights, places, before)
        return chunkwise(q, k, v, log_decay, memory, levels, chunk, scan)

    if context_size() == 1:
        return chunkwise(q, k, v, log_decay, memory, levels, chunk)
    return over_context(local, (q, k, v, log_decay), levels, memory)


FORMS = {"parallel": parallel, "chunkwise": chunkwise, "recurrent": recurrent, "ring": ring}


def over_context(
    form: Callable[..., Any], tokens: tuple[Any, ...], levels: Levels, memory: Memory
) -> Run:
    """Runs `form(*tokens, *levels, memory)` on every device; see `context_parallel`."""
    length = tokens[0].shape[1]
    weights, *places = levels
    # Padding stays at the last place: at another one it would merge levels.
    places = (_lengthened(x, -length % context_size()) for x in places)
    arrays = (*(_padded(x, -length % context_size()) for x in (*tokens, weights)), *places)
    memory, y = context_parallel.over_context(form, arrays, memory)
    return memory, y[:, :length]


def run(
    chunks: Chunks,
    v: Float[Array, "B T H Dv"],
    memory: Memory,
    levels: Levels,
    keep: Callable[[Any, Memory], Memory],
    scan: Callable[..., Any] = lax.scan,
) -> Run:
    """Runs the recurrence between chunks, and returns S after the last token and the outputs.

    Args:
      chunks: what the recurrence is within chunks, without levels.
      v: values.
      memory: S of the levels before the first token.
      levels: the weights of the levels and the places.
      keep: `keep((chunks.kept, level), memory)` is S after a chunk from S before it, of which
        levels up to this one have been merged.
      scan: runs the recurrence between chunks.
    """
    length, depth, size = v.shape[1], memory.shape[2], chunks.pairs.shape[-1]
    v, weights = decay.split(v, size), decay.split(levels.weights, size)
    extra = -length % size
    places = decay.split(_lengthened(levels.places, extra), size)
    first = decay.split(_lengthened(levels.before, extra), size)[..., :1]
    since = level(first, places, depth)
    within = level(places[..., :, None], places[..., None, :], depth)
    y = (chunks.pairs * _weights(weights, within)) @ v

    is_level = level(places[..., -1:], places, depth)[..., None] == np.arange(depth)
    writes = chunks.writes[..., None, :] * is_level[..., None]
    added = writes.reshape(*writes.shape[:-2], -1).mT @ v
    added = added.reshape(*added.shape[:-2], depth, -1, added.shape[-1])

    def step(memory, chunk):
        kept, added = chunk
        return keep(kept, memory) + added, memory

    memory, before = scan(step, memory, ((chunks.kept, since[..., -1]), added))
    # What was at a level before the chunk is at this level or a higher one later.
    later = jnp.maximum(since[..., None], np.arange(depth, dtype=np.int32))
    y = y + read(chunks.reads, _weights(weights, later), before)
    # (N, B, H, C, Dv) to (B, T, H, Dv).
    y = jnp.transpose(y, (1, 0, 3, 2, 4))
    return memory, y.reshape(y.shape[0], -1, *y.shape[3:])[:, :length]


def read(
    q: Float[Array, "*#N C D"], weights: Float[Array, "*#N C L"], memory: Float[Array, "*#N L D Dv"]
) -> Float[Array, "*N C Dv"]:
    """Returns weighted sums over levels of S^T q, as one product over levels and channels."""
    q = q[..., None, :] * weights[..., None]
    joined = memory.reshape(*memory.shape[:-3], -1, memory.shape[-1])
    return q.reshape(*q.shape[:-2], -1) @ joined


def _weights(weights, found):
    """Returns the weights (..., C, L) of queries at the levels found, (..., C, S).

    A sum over levels, because the gradient of a look-up would scatter.
    """
    each = (jnp.where(found == n, weights[..., n, None], 0) for n in range(weights.shape[-1]))
    return functools.reduce(jnp.add, each)


def _padded(x, extra):
    """Adds zeros to the end of the tokens."""
    return jnp.pad(x, ((0, 0), (0, extra), *[(0, 0)] * (x.ndim - 2)))


def _lengthened(places, extra):
    """Repeats the last place."""
    return jnp.pad(places, ((0, 0), (0, extra), (0, 0)), mode="edge")
