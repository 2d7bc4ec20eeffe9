"""The forms of the delta rule, plain and gated: pure functions that compute the same."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from research.attention.implementations.sharding import context_size
from research.attention.mixers.linear import context_parallel, decay

# Added under the square root when queries and keys are normalized: vectors of zeros stay zero and
# have a finite gradient.
EPSILON = 1e-6

Run = tuple[Float[Array, "B H D Dv"], Float[Array, "B T H Dv"]]


def recurrent(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    beta: Float[Array, "B T H"],
    log_decay: decay.Decay,
    memory: Float[Array, "B H D Dv"],
) -> Run:
    """Runs the gated delta rule token by token (Yang, Kautz, Hatamizadeh 2024, section 3.1).

    S_t = (I - b_t k_t k_t^T) diag(a_t) S_{t-1} + b_t k_t v_t^T and y_t = S_t^T q_t, where S is the
    transpose of the paper's and a_t is one number per head, or one per channel of the keys (Kimi
    Team 2025, section 3). Without decays it is the delta rule (Schlag et al. 2021, section 4.2;
    Yang et al. 2024, "Parallelizing linear transformers with the delta rule", section 2.2).

    Args:
      q: queries, float32 or wider.
      k: keys, of norm 1 or less.
      v: values.
      beta: fraction of the value stored for a key that is replaced, in (0, 1); up to 2 (Grazzi et
        al. 2024), of which more than 1 turns its sign.
      log_decay: log a_t <= 0, (B, T, H) or (B, T, H, D); None is a_t = 1.
      memory: S before the first of these tokens.

    Returns:
      S after the last token and the outputs, in the dtype of the arguments.
    """

    def step(memory, token):
        query, key, value, rate, log = token
        if log is not None:
            factor = jnp.exp(log)
            memory = memory * jnp.expand_dims(factor, tuple(range(factor.ndim, memory.ndim)))
        new = rate[..., None] * (value - jnp.einsum("bhd,bhde->bhe", key, memory))
        memory = memory + key[..., :, None] * new[..., None, :]
        return memory, jnp.einsum("bhd,bhde->bhe", query, memory)

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (q, k, v, beta, log_decay))
    memory, out = lax.scan(step, memory, tokens)
    return memory, jnp.moveaxis(out, 0, 1)


class _Chunks(NamedTuple):
    """Inputs of the recurrence between chunks, each (chunks, B, H, ...).

    Attributes:
      written: values that the tokens write if S is zero before the chunk, (C, Dv).
      forgotten: (C, D); written values are reduced by `forgotten @ S`.
      kept: the keys, (C, D), decayed to the end of the chunk.
      whole: the product of the chunk's decays, (1, 1) or (D, 1).
    """

    written: Array
    forgotten: Array
    kept: Array
    whole: Array


def chunkwise(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    beta: Float[Array, "B T H"],
    log_decay: decay.Decay,
    memory: Float[Array, "B H D Dv"],
    chunk: int = decay.CHUNK,
    scan: Callable[..., Any] = lax.scan,
) -> Run:
    """Runs the recurrence chunk by chunk, in time linear in T.

    All but two matrix products are batched over the chunks. The tokens of a chunk write
    u_i = b_i (v_i - value stored for k_i at that time), a triangular system whose solution is
    linear in the state at the start of the chunk (the WY form: Yang et al. 2024,
    "Parallelizing...", section 3.2; with decays Yang, Kautz, Hatamizadeh 2024, section 3.3).

    Arguments and results are those of `recurrent`; T need not be a multiple of `chunk`, and `scan`
    runs the recurrence between chunks.
    """
    length = q.shape[1]
    chunk = min(chunk, length)
    count = -(-length // chunk)

    def split(x):
        # Padding has beta = 0, so it writes nothing, and log_decay = 0, so S does not decay.
        x = jnp.pad(x, ((0, 0), (0, count * chunk - length), *[(0, 0)] * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, chunk, *x.shape[2:]), (1, 3), (0, 2))

    tokens = jax.tree.map(split, (q, k, v, beta, log_decay))
    q, k, v, beta, log_decay = tokens  # each (chunks, B, H, chunk, ...)
    since, until, scores = _decayed(k, log_decay)
    system = beta[..., None] * jnp.tril(scores(k), -1)
    targets = jnp.concatenate([v, k * since], axis=-1) * beta[..., None]
    solved = _unit_lower_inverse(system) @ targets
    written, forgotten = jnp.split(solved, [v.shape[-1]], axis=-1)

    def step(memory, chunk):
        new = chunk.written - chunk.forgotten @ memory
        return chunk.whole * memory + chunk.kept.mT @ new, (memory, new)

    whole = since[..., -1:, :].reshape(*since.shape[:-2], -1, 1)
    whole = jnp.broadcast_to(whole, (count, *memory.shape[:2], *whole.shape[-2:]))
    memory, (before, new) = scan(step, memory, _Chunks(written, forgotten, k * until, whole))
    out = (q * since) @ before + scores(q) @ new
    out = jnp.moveaxis(out, (0, 2), (1, 3))
    return memory, out.reshape(out.shape[0], count * chunk, *out.shape[3:])[:, :length]


def ring(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    beta: Float[Array, "B T H"],
    log_decay: decay.Decay,
    memory: Float[Array, "B H D Dv"],
    chunk: int = decay.CHUNK,
) -> Run:
    """Runs `chunkwise` with tokens sharded over the mesh axis "context"; see `shards`.

    A device's tokens multiply S by a (D, D) matrix, which is found by running the recurrence on the
    identity with nothing written. Arguments and results are those of `chunkwise`, which runs if
    there is no such axis.
    """

    def local(q, k, v, beta, log_decay, memory):
        def scan(step, memory, chunks):
            nothing = jnp.zeros((len(chunks.written), 1, 1, 1, 1), memory.dtype)
            unit = jnp.eye(memory.shape[-2], dtype=memory.dtype)
            unit = jnp.broadcast_to(unit, (*memory.shape[:2], *unit.shape))
            kept, _ = lax.scan(step, unit, chunks._replace(written=nothing))
            return context_parallel.scan(step, memory, chunks, kept, jnp.matmul)

        return chunkwise(q, k, v, beta, log_decay, memory, chunk, scan)

    if context_size() == 1:
        return chunkwise(q, k, v, beta, log_decay, memory, chunk)
    return context_parallel.over_context(local, (q, k, v, beta, log_decay), memory)


def parallel(
    q: Float[Array, "B T H D"],
    k: Float[Array, "B T H D"],
    v: Float[Array, "B T H Dv"],
    beta: Float[Array, "B T H"],
    log_decay: decay.Decay,
    memory: Float[Array, "B H D Dv"],
) -> Run:
    """Runs `chunkwise` with a single chunk; its triangular system makes it cubic in T."""
    return chunkwise(q, k, v, beta, log_decay, memory, chunk=q.shape[1])


FORMS = {"parallel": parallel, "chunkwise": chunkwise, "recurrent": recurrent, "ring": ring}


def _decayed(k, log_decay):
    """Returns products of decays from a chunk's start and to its end, and scores with the keys.

    The products are columns, (..., C, 1) or (..., C, D); all ones if there are no decays. The third
    result maps x (..., C, D) to x_i . k_j, decayed after j through i, (..., C, C).
    """
    if log_decay is not None and log_decay.ndim == k.ndim:
        since, until = map(jnp.exp, decay.channel_sums(log_decay))
        return since, until, lambda x: decay.channel_scores(x, k, log_decay)[0]
    if log_decay is None:
        chunk = k.shape[-2]
        ones = jnp.ones((chunk, 1), k.dtype)
        since, between, until = ones, jnp.tril(jnp.ones((chunk, chunk), k.dtype)), ones
    else:
        since, between, until = decay.products(log_decay)
        since, until = since[..., None], until[..., None]
    return since, until, lambda x: x @ k.mT * between


def unit_lower_inverse(strict: Float[Array, "*N C C"]) -> Float[Array, "*N C C"]:
    """Returns (I + L)^-1 for strictly lower triangular L."""
    return _unit_lower_inverse(strict)


@jax.custom_jvp
def _unit_lower_inverse(strict):
    """Returns (I + L)^-1 for strictly lower L (..., C, C), blockwise, with matrix products only.

    It avoids LAPACK, because on CPUs jaxlib 0.10.2 can deadlock when two batched calls run at the
    same time, each holding the threads that the other needs.
    """
    size = strict.shape[-1]
    if size <= 8:
        # (I - L) (I + L^2) (I + L^4), exact because L^8 = 0. Powers of larger blocks could become
        # large and cancel.
        inverse, power = jnp.eye(size, dtype=strict.dtype) - strict, strict
        for _ in range((size - 1).bit_length() - 1):
            power = power @ power
            inverse = inverse + inverse @ power
        return inverse
    half = -(-size // 2)
    # Inverts both halves in one batch. If C is odd, the second is padded by a zero row and column,
    # which is a row of the identity in I + L.
    short = [(0, 0)] * (strict.ndim - 2) + [(0, 2 * half - size)] * 2
    halves = jnp.stack([strict[..., :half, :half], jnp.pad(strict[..., half:, half:], short)])
    first, second = _unit_lower_inverse(halves)
    second = second[..., : size - half, : size - half]
    below = -second @ (strict[..., half:, :half] @ first)
    above = jnp.concatenate([first, jnp.zeros_like(below).mT], axis=-1)
    return jnp.concatenate([above, jnp.concatenate([below, second], axis=-1)], axis=-2)


@_unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(primals, tangents):
    # d(A^-1) = -A^-1 dA A^-1 reuses the inverse instead of differentiating the recursion.
    inverse = _unit_lower_inverse(*primals)
    return inverse, -inverse @ jnp.tril(tangents[0], -1) @ inverse


def unit(x: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """Returns vectors divided by their length, with `EPSILON` under its root."""
    return x * lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + EPSILON)
