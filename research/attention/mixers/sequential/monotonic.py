"""Monotonic alignments: a reader that only moves forward, and its expected position.

The reader continues from where it stopped for the previous query, inspects the keys in order and
stops at key s with probability p_s. All functions here are exact for p of 0 and 1 and have finite
gradients there, because the recurrences are evaluated directly (in log S rounds) instead of
dividing by products of 1 - p. Raffel et al. 2017 train with noise before the sigmoid; callers have
to add it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from research.attention.mixers.sequential.alignments import (
    AdditiveAlignment,
    Position,
    Positions,
    hidden_keys,
    hidden_query,
)
from research.attention.parameters import Constant, Parameter, vector_axes
from research.attention.parts.additive_scores import additive_scores
from research.attention.parts.masks import Mask
from research.attention.parts.normalizers import softmax

CHUNK = 4


def inspection_probability(
    p: Float[Array, "*rows S"], previous: Float[Array, "*rows S"]
) -> Float[Array, "*rows S"]:
    """Returns the probability that the reader inspects key s (Raffel et al. 2017, equation 13).

    q_s = (1 - p_{s-1}) q_{s-1} + previous_s.

    Args:
      p: the probability of stopping at a key when it is inspected.
      previous: the probability that the reader starts at this key.
    """
    passing = jnp.concatenate([jnp.zeros_like(p[..., :1]), 1 - p[..., :-1]], axis=-1)

    def chained(first, second):
        # Composes two affine maps q -> a q + b. All terms are nonnegative, so nothing cancels.
        (a, b), (a2, b2) = first, second
        return a * a2, a2 * b + b2

    return jax.lax.associative_scan(chained, (passing, previous), axis=-1)[1]


def expected_alignment(
    p: Float[Array, "*rows S"], previous: Float[Array, "*rows S"]
) -> Float[Array, "*rows S"]:
    """Returns the probability that the reader stops at key s (Raffel et al. 2017, eqs. 9-14).

    alpha_s = p_s sum_{k <= s} previous_k prod_{k <= l < s} (1 - p_l).

    Args:
      p: the probability of stopping at a key when it is inspected; 0 for padding.
      previous: the result for the previous query; for the first query, 1 at key 0 and 0 elsewhere.

    Returns:
      alpha, whose sum is at most the sum of `previous`: with the remaining probability the reader
      stops nowhere.
    """
    return p * inspection_probability(p, previous)


def pass_probability(
    p: Float[Array, "*rows S"], previous: Float[Array, "*rows S"]
) -> Float[Array, "*rows"]:
    """Returns the probability that the reader passes all keys without stopping.

    Arguments are those of `expected_alignment`.
    """
    return (1 - p[..., -1]) * inspection_probability(p, previous)[..., -1]


def chunk_alignment(
    alpha: Float[Array, "B H S"],
    scores: Float[Array, "B H S"],
    chunk: int,
    allowed: Bool[Array, "..."] | None = None,
) -> Float[Array, "B H S"]:
    """Returns expected weights of a softmax over the `chunk` keys that end where the reader stops.

    beta_j = sum_{k = j}^{j + w - 1} alpha_k exp(u_j) / sum_{l = k - w + 1}^{k} exp(u_l), w the
    chunk (Chiu and Raffel 2018, section 2.3). Each window gets its own softmax, which takes w S
    numbers: with one shared maximum, windows of much lower scores would underflow.

    Args:
      alpha: the probability of stopping at each key.
      scores: u.
      chunk: w, at least 1. Windows are shorter at the first keys.
      allowed: the keys that exist, broadcastable to (B, H, S); None means all.

    Returns:
      beta, whose sum equals the sum of alpha.
    """
    length = scores.shape[-1]
    chunk = min(chunk, length)  # a window has at most all keys
    allowed = jnp.broadcast_to(True if allowed is None else allowed, scores.shape)

    def windows(x):
        """Returns x[k - m] for m = 0 .. w - 1 on a new last axis, zero-padded at the front."""
        x = jnp.pad(x, ((0, 0), (0, 0), (chunk - 1, 0)))
        return jnp.stack([x[..., chunk - 1 - m :][..., :length] for m in range(chunk)], axis=-1)

    spread = alpha[..., None] * softmax(windows(scores), windows(allowed))
    spread = jnp.pad(spread, ((0, 0), (0, 0), (0, chunk - 1), (0, 0)))
    return sum((spread[..., m : m + length, m] for m in range(1, chunk)), spread[..., :length, 0])


@dataclasses.dataclass(frozen=True)
class Monotonic(AdditiveAlignment):
    """A reader that only moves forward and stops at key s with probability p_s = sigma(e_s).

    e = g / |v| v . tanh(W q + U k + b) + r (Raffel et al. 2017, section 2.4). The weights are the
    probabilities of stopping at each key. They may sum to less than 1: with the remaining
    probability the reader stops nowhere and its output is zero.

    Attributes:
      offset: the initial r. Lower values make the reader move further at first; -4 suits memories
        of hundreds of keys.
      waits: whether a reader that stopped nowhere continues from the last key that the query could
        see, for memories that grow with the queries. In the paper it has left the memory for good.
    """

    offset: float = -1.0
    waits: bool = False

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters by name.

        W "query" (H, D, A), U "key" (K, D, A), b "bias" and v "vector" (H, A), g "scale" (H,)
        (initially 1 / sqrt(A)) and r "offset" (H,).
        """
        scale, offset = Constant(self.score_width**-0.5), Constant(self.offset)
        return {
            **self._energy(),
            "scale": Parameter((self.num_heads,), scale, vector_axes("heads")),
            "offset": Parameter((self.num_heads,), offset, vector_axes("heads")),
        }

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns the distribution of the reader's position, (B, H, S), at least float32: key 0."""
        return super().init_state(batch, length, dtype).at[..., :1].set(1)

    def step(
        self,
        params: dict[str, Array],
        q: Float[Array, "B 1 H D"],
        memory: dict[str, Float[Array, "B S ..."]],
        q_index: Position,
        kv_index: Positions,
        mask: Mask | None,
        state: PyTree,
    ) -> tuple[Float[Array, "B H S"], PyTree]:
        """See `Alignment`."""
        allowed = jnp.ones(len(kv_index), bool)
        if mask is not None:
            allowed = mask(q_index[:, None], kv_index[None, :])[..., 0, :]
        # The reader passes keys that are masked.
        p = jnp.where(allowed, self._stops(params, q, memory, state.dtype), 0)
        alpha = expected_alignment(p, state)
        weights = self._weights(params, q, memory, alpha, allowed)
        if not self.waits:
            return weights, alpha
        slots = jnp.arange(alpha.shape[-1])
        last = jnp.max(jnp.where(allowed | (state > 0), slots, 0), axis=-1, keepdims=True)
        return weights, alpha + jnp.where(slots == last, pass_probability(p, state)[..., None], 0)

    def _stops(self, params, q, memory, dtype):
        """Returns p (B, H, S), before masking."""
        vector = params["vector"].astype(dtype)
        # The epsilon keeps the gradient of a zero vector finite.
        length = jnp.sqrt(jnp.sum(vector * vector, axis=-1, keepdims=True) + 1e-12)
        vector = params["scale"][:, None].astype(dtype) * vector / length
        hidden = jnp.swapaxes(memory["hidden"], 1, 2)
        energy = additive_scores(hidden_query(params, "", q), hidden, vector)[:, :, 0]
        energy = energy.astype(dtype) + params["offset"][:, None].astype(dtype)
        return jax.nn.sigmoid(energy)

    def _weights(self, params, q, memory, alpha, allowed):
        return alpha


@dataclasses.dataclass(frozen=True)
class MonotonicChunkwise(Monotonic):
    """Monotonic chunkwise attention: a softmax over the `chunk` keys that end where a reader stops.

    Chiu and Raffel 2018 (MoChA), section 2.3. The reader is that of `Monotonic`; the softmax's
    energies u = v . tanh(W q + U k + b) have separate parameters. The state holds the reader's stop
    probabilities, not the softmax's weights.

    Attributes:
      chunk: w, at least 1.

    Raises:
      ValueError: `chunk` is less than 1.
    """

    chunk: int = CHUNK

    def __post_init__(self):
        if self.chunk < 1:
            raise ValueError(f"chunk = {self.chunk}; it must be at least 1")

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of `Monotonic`, and those of the second energy.

        "chunk_query", "chunk_key", "chunk_bias" and "chunk_vector", of the shapes of the first.
        """
        return super().parameters() | self._energy("chunk_")

    def precompute_keys(
        self, params: dict[str, Array], k: Float[Array, "B S K D"]
    ) -> dict[str, Float[Array, "B S ..."]]:
        """Returns "hidden" and "chunk_hidden" (B, S, K, A), the keys' terms of the energies."""
        found = super().precompute_keys(params, k)
        return {**found, "chunk_hidden": hidden_keys(params, "chunk_key", k)}

    def _weights(self, params, q, memory, alpha, allowed):
        hidden = jnp.swapaxes(memory["chunk_hidden"], 1, 2)
        hidden_q = hidden_query(params, "chunk_", q)
        scores = additive_scores(hidden_q, hidden, params["chunk_vector"])[:, :, 0]
        return chunk_alignment(alpha, scores.astype(alpha.dtype), self.chunk, allowed)
