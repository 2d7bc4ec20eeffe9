"""A linear recurrence whose transition is diagonal plus a matrix of rank 1, in several forms.

S_t = (diag(w_t) + b_t a_t^T) S_{t-1} + k_t v_t^T and y_t = S_t^T r_t (Peng et al. 2025, RWKV-7,
section 4.1). Unlike in the delta rule, a_t reads the state before it decays, and what it reads may
be written with another vector b_t. Decays are logarithms as in `decay`; where a state has to start
anew, a_t has to be zero too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from research.attention.implementations.sharding import context_size
from research.attention.mixers.linear import context_parallel, decay
from research.attention.mixers.linear.delta_rule import unit_lower_inverse

CHUNK = 32

Tokens = Float[Array, "B T H D"]
Memory = Float[Array, "B H D Dv"]
Run = tuple[Memory, Float[Array, "B T H Dv"]]


def recurrent(
    r: Tokens,
    k: Tokens,
    v: Float[Array, "B T H Dv"],
    a: Tokens,
    b: Tokens,
    log_decay: Tokens,
    memory: Memory,
) -> Run:
    """Runs the recurrence token by token.

    Args:
      r: what reads the state, float32 or wider as all arguments.
      k: keys that values are written with.
      v: values.
      a: what reads the state before it decays.
      b: what it is written with again.
      log_decay: log w_t <= 0.
      memory: S before the first of these tokens.

    Returns:
      S after the last token, and the outputs.
    """

    def step(memory, token):
        r, k, v, a, b, log = token
        read = jnp.einsum("bhd,bhde->bhe", a, memory)
        memory = memory * jnp.exp(log)[..., None] + b[..., :, None] * read[..., None, :]
        memory = memory + k[..., :, None] * v[..., None, :]
        return memory, jnp.einsum("bhd,bhde->bhe", r, memory)

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (r, k, v, a, b, log_decay))
    memory, out = lax.scan(step, memory, tokens)
    return memory, jnp.moveaxis(out, 0, 1)


class _Chunks(NamedTuple):
    """Inputs of the recurrence between chunks, each (chunks, B, H, ...).

    Attributes:
      read: what the tokens' a read if S is zero before the chunk, (C, Dv).
      reads: (C, D); `reads @ S` is read besides.
      kept: b, decayed to the end of the chunk, (C, D).
      added: what keys and values add to S, (D, Dv).
      whole: the product of the chunk's decays, (D, 1).
    """

    read: Array
    reads: Array
    kept: Array
    added: Array
    whole: Array


def _step(memory, chunk):
    """Returns S after the chunk, and S before it with what the tokens' a read."""
    read = chunk.read + chunk.reads @ memory
    return chunk.whole * memory + chunk.added + chunk.kept.mT @ read, (memory, read)


def chunkwise(
    r: Tokens,
    k: Tokens,
    v: Float[Array, "B T H Dv"],
    a: Tokens,
    b: Tokens,
    log_decay: Tokens,
    memory: Memory,
    chunk: int = CHUNK,
    scan: Callable[..., Any] = lax.scan,
) -> Run:
    """Runs the recurrence chunk by chunk, in time linear in T.

    What the a of a chunk's tokens read depends on what earlier ones read: a triangular system whose
    solution is linear in the state at the start of the chunk, as in `delta_rule.chunkwise`.
    Arguments and results are those of `recurrent`; T need not be a multiple of `chunk`, and `scan`
    runs the recurrence between chunks.
    """
    length = r.shape[1]
    chunk = min(chunk, length)
    count = -(-length // chunk)

    def split(x):
        # Padding reads and writes nothing, and log_decay = 0, so S does not change.
        x = jnp.pad(x, ((0, 0), (0, count * chunk - length), (0, 0), (0, 0)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), (1, 3), (0, 2))

    r, k, v, a, b, log_decay = map(split, (r, k, v, a, b, log_decay))
    since, until = map(jnp.exp, decay.channel_sums(log_decay))

    def scores(x, y):
        return decay.channel_scores(x, y, log_decay)[0]

    # The state that a reads has not decayed at its token: it is read as by the token before.
    ahead = jnp.concatenate([a[..., 1:, :], jnp.zeros_like(a[..., :1, :])], axis=-2)
    inverse = unit_lower_inverse(-_down(scores(ahead, b)))
    before_token = jnp.concatenate([jnp.ones_like(since[..., :1, :]), since[..., :-1, :]], axis=-2)
    read, reads = inverse @ (_down(scores(ahead, k)) @ v), inverse @ (a * before_token)
    whole = since[..., -1, :, None]
    chunks = _Chunks(read, reads, b * until, (k * until).mT @ v, whole)
    memory, (before, read) = scan(_step, memory, chunks)
    out = (r * since) @ before + scores(r, b) @ read + scores(r, k) @ v
    out = jnp.moveaxis(out, (0, 2), (1, 3))
    return memory, out.reshape(out.shape[0], count * chunk, *out.shape[3:])[:, :length]


def _down(x):
    """Moves rows down by one, the first of zeros; the last is dropped."""
    return jnp.concatenate([jnp.zeros_like(x[..., :1, :]), x[..., :-1, :]], axis=-2)


def parallel(
    r: Tokens,
    k: Tokens,
    v: Float[Array, "B T H Dv"],
    a: Tokens,
    b: Tokens,
    log_decay: Tokens,
    memory: Memory,
) -> Run:
    """Runs `chunkwise` with a single chunk; its triangular system makes it cubic in T."""
    return chunkwise(r, k, v, a, b, log_decay, memory, chunk=r.shape[1])


def ring(
    r: Tokens,
    k: Tokens,
    v: Float[Array, "B T H Dv"],
    a: Tokens,
    b: Tokens,
    log_decay: Tokens,
    memory: Memory,
    chunk: int = CHUNK,
) -> Run:
    """Runs `chunkwise` with tokens sharded over the mesh axis "context"; see `context_parallel`.

    A device's tokens multiply S by a (D, D) matrix, which is found by running the recurrence on the
    identity with nothing written. Arguments and results are those of `chunkwise`, which runs if
    there is no such axis.
    """

    def local(r, k, v, a, b, log_decay, memory):
        def scan(step, memory, chunks):
            nothing = jnp.zeros((len(chunks.read), 1, 1, 1, 1), memory.dtype)
            unit = jnp.eye(memory.shape[-2], dtype=memory.dtype)
            unit = jnp.broadcast_to(unit, (*memory.shape[:2], *unit.shape))
            kept, _ = lax.scan(step, unit, chunks._replace(read=nothing, added=nothing))
            return context_parallel.scan(step, memory, chunks, kept, jnp.matmul)

        return chunkwise(r, k, v, a, b, log_decay, memory, chunk, scan)

    if context_size() == 1:
        return chunkwise(r, k, v, a, b, log_decay, memory, chunk)
    return context_parallel.over_context(local, (r, k, v, a, b, log_decay), memory)


FORMS = {"parallel": parallel, "chunkwise": chunkwise, "recurrent": recurrent, "ring": ring}
