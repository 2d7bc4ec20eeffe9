"""Attention in blocks of queries, each against all keys, with memory linear in their number.

Scores of a block of queries are whole rows, so that this works for what `blockwise` lacks: biases
and normalizers that see all scores of a query at once, and scores that are no dot products. Source:
Rabe and Staats 2021, "Self-attention Does Not Need O(n^2) Memory", section 3, without their blocks
of keys.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.errors import Unsupported
from research.attention.implementations import dense
from research.attention.parts.mechanism import PLAIN, Mechanism

BLOCK = 128


def unsupported_part(mechanism: Mechanism) -> str:
    """Returns the part of the mechanism that was computed for all queries at once; empty if none.

    Such parts hold arrays of all queries, which are not cut into blocks here.
    """
    if mechanism.selection is not None:
        return "an indexer"
    return "" if mechanism.focus is None else "a predicted window"


def attend(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K Dv"],
    mechanism: Mechanism = PLAIN,
    *,
    q_index: Integer[Array | np.ndarray, " T"] | None = None,
    kv_index: Integer[Array | np.ndarray, " S"] | None = None,
    block_size: int = 0,
) -> Float[Array, "B T H Dv"]:
    """Computes the same as `dense.attend`, in memory linear in S for each block of queries.

    The backward pass computes the scores of a block again. Parts whose queries change what is
    stored of the keys see the blocks in turn, as they do while decoding.

    Args:
      q: as in `dense.attend`, like all arguments not described here.
      k: keys.
      v: values.
      mechanism: the attention mechanism.
      q_index: absolute positions of the queries; 0 .. T-1 if None.
      kv_index: absolute positions of the keys; 0 .. S-1 if None.
      block_size: queries per block; 0 chooses. Does not affect the result.

    Raises:
      Unsupported: a part holds arrays of all queries.
    """
    if missing := unsupported_part(mechanism):
        raise Unsupported(f"attention in rows lacks {missing}; use implementation 'dense'")
    batch, length = q.shape[:2]
    size = min(block_size or BLOCK, length)
    if size == length:
        return dense.attend(q, k, v, mechanism, q_index=q_index, kv_index=kv_index)
    short = -length % size
    index = np.arange(length) if q_index is None else q_index
    keys = np.arange(k.shape[1]) if kv_index is None else kv_index
    # Queries that fill the last block are repetitions of the last one, and are dropped.
    index = jnp.pad(jnp.asarray(index), (0, short), mode="edge").reshape(-1, size)
    blocks = jnp.pad(q, ((0, 0), (0, short), (0, 0), (0, 0)), mode="edge")
    blocks = jnp.moveaxis(blocks.reshape(batch, -1, size, *q.shape[2:]), 1, 0)

    @jax.checkpoint
    def step(stored: Any, row: Any) -> tuple[Any, Float[Array, "B C H Dv"]]:
        queries, places = row
        own, at = mechanism.with_tokens(stored), {"q_index": places, "kv_index": keys}
        out = dense.attend(queries, k, v, own, **at)
        return dense.stored_after(queries, k, v, own, **at) if stored else stored, out

    rows = (blocks, index)
    if not mechanism.changes_tokens:
        _, out = jax.lax.scan(step, {}, rows)
    else:
        # What is stored before the first block is in the mechanism.
        first = jax.tree.map(lambda a: a[0], rows)
        at = {"q_index": first[1], "kv_index": keys}
        stored = dense.stored_after(first[0], k, v, mechanism, **at)
        _, rest = jax.lax.scan(step, stored, jax.tree.map(lambda a: a[1:], rows))
        out = jnp.concatenate([dense.attend(first[0], k, v, mechanism, **at)[None], rest])
    out = jnp.moveaxis(out, 0, 1)
    return out.reshape(batch, -1, *out.shape[3:])[:, :length]
