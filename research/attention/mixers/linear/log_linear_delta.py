"""The gated delta rule with levels of log-linear attention.

A token writes at level 0, and decays and corrects the states of all levels (Guo et al. 2025,
"Log-Linear Attention", section 3.3).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from research.attention.implementations.sharding import context_size
from research.attention.mixers.linear import context_parallel, decay, log_linear
from research.attention.mixers.linear.delta_rule import unit_lower_inverse
from research.attention.mixers.linear.log_linear import Chunks, Levels, Memory, Run


def recurrent(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    beta: Float[Array, "B T H"],
    log_decay: Float[Array, "#B T H"],
    memory: Memory,
    levels: Levels,
) -> Run:
    """Runs the recurrence token by token.

    S_t^(l) = a_t (I - b_t k_t k_t^T) S_{t-1}^(l), merged as in `log_linear`, for l > 0, and
    S_t^(0) = b_t k_t v_t^T.

    Args:
      q: queries, float32 or wider.
      k: keys, of norm 1 or less.
      v: values.
      beta: b_t, as in `delta_rule.recurrent`.
      log_decay: log a_t, at most 0.
      memory: S of the levels before the first token.
      levels: the weights of the levels and the places.

    Returns:
      S after the last token, and the outputs.
    """

    def step(memory, token):
        query, key, value, rate, log, (weights, place, before) = token
        up_to = log_linear.level(before, place, memory.shape[2])
        memory = jnp.exp(log)[..., None, None, None] * log_linear.merged(up_to, memory)
        # What each level has stored for the key is taken out; the value comes to level 0.
        new = -jnp.einsum("bhd,bhlde->bhle", key, memory)
        new = rate[..., None, None] * new.at[:, :, 0].add(value)
        memory = memory + key[:, :, None, :, None] * new[..., None, :]
        y = log_linear.read(query[..., None, :], weights[..., None, :], memory)
        return memory, y[..., 0, :]

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, beta, log_decay, levels))
    memory, y = lax.scan(step, memory, tokens)
    return memory, jnp.moveaxis(y, 0, 1)


def parallel(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    beta: Float[Array, "B T H"],
    log_decay: Float[Array, "#B T H"],
    memory: Memory,
    levels: Levels,
) -> Run:
    """Runs `chunkwise` with a single chunk; its triangular system makes it cubic in T."""
    return chunkwise(q, k, v, beta, log_decay, memory, levels, chunk=q.shape[1])


def chunkwise(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    beta: Float[Array, "B T H"],
    log_decay: Float[Array, "#B T H"],
    memory: Memory,
    levels: Levels,
    chunk: int = decay.CHUNK,
    scan: Callable[..., Any] = lax.scan,
) -> Run:
    """Runs the recurrence chunk by chunk, in time and memory O(T log T).

    The triangular system is that of `delta_rule.chunkwise`. Its solution is multiplied into queries
    and keys and not into values, because values are read with weights that depend on the pair.
    Arguments and results are those of `recurrent`.
    """
    size = min(chunk, v.shape[1])
    q, k, beta, log_decay = (decay.split(x, size) for x in (q, k, beta, log_decay))
    since, between, until = decay.products(log_decay)
    since, until = since[..., None], until[..., None]
    system = beta[..., None] * jnp.tril(k @ k.mT * between, -1)
    inverse = unit_lower_inverse(system) * beta[..., None, :]
    scores, late = q @ k.mT * between, k * until
    forgotten = inverse @ (k * since)
    reads = q * since - scores @ forgotten
    kept = since[..., -1:, :] * jnp.eye(k.shape[-1], dtype=k.dtype) - late.mT @ forgotten
    chunks = Chunks(scores @ inverse, reads, inverse.mT @ late, kept)
    return log_linear.run(chunks, v, memory, levels, _keep, scan)


def ring(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    beta: Float[Array, "B T H"],
    log_decay: Float[Array, "#B T H"],
    memory: Memory,
    levels: Levels,
    chunk: int = decay.CHUNK,
) -> Run:
    """Runs `chunkwise` with tokens sharded over the mesh axis "context"; see `shards`.

    Arguments and results are those of `chunkwise`, which runs if there is no such axis.
    """

    def local(q, k, v, beta, log_decay, weights, places, before, memory):
        def scan(step, memory, chunks):
            matrices, up_to = chunks[0]
            unit = jnp.broadcast_to(jnp.eye(k.shape[-1], dtype=k.dtype), matrices.shape[1:])
            whole, _ = lax.scan(lambda product, one: (one @ product, None), unit, matrices)
            return context_parallel.scan(step, memory, chunks, (whole, up_to.max(0)), _keep)

        levels = Levels(weights, places, before)
        return chunkwise(q, k, v, beta, log_decay, memory, levels, chunk, scan)

    if context_size() == 1:
        return chunkwise(q, k, v, beta, log_decay, memory, levels, chunk)
    return log_linear.over_context(local, (q, k, v, beta, log_decay), levels, memory)


FORMS = {"parallel": parallel, "chunkwise": chunkwise, "recurrent": recurrent, "ring": ring}


def _keep(kept, memory):
    """Merges S, and decays and corrects it."""
    matrix, up_to = kept
    return matrix[:, :, None] @ log_linear.merged(up_to, memory)
