"""The lightning indexer: scores by which each query selects the keys that it attends to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from research.attention.parameters import Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.content_dependent import (
    ContentDependent,
    PerKey,
    PerQuery,
    key_order,
)
from research.attention.parts.masks import Index, Mask, static, unknown_blocks
from research.attention.parts.positions import Rotary

EPSILON = 1e-6
"""Added to the variance in the norm of index keys, as in the released model."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Indexer(ContentDependent):
    """I_ts = sum_j w_tj ReLU(q_tj . k_s), and each query sees the `top` keys with the largest I.

    The lightning indexer (DeepSeek-AI 2025, "DeepSeek-V3.2-Exp", section 2.1, equations 1 and 2).
    What the paper leaves open is as in the released model: q_t and w_t / sqrt(J E) are projections
    of the query's token, k_s is LayerNorm of a projection of the key's, and the first half of their
    E channels is rotated where those of attention are. The Hadamard transform and the 8 bits of
    that model are left out: the one changes no product, the other is for speed.

    Its inputs are cut from the graph of gradients, and a selection has no gradient: what trains it
    is `KeyScores.divergence` alone, which trains nothing else. For every implementation the J T S
    products of a layer, and the weights of all heads for the loss, are in memory at once.
    """

    query: Any  # a Parameter or an array (C, J, E), C the width of what queries are projected from
    key: Any  # (M, E)
    key_scale: Any  # (E,)
    key_bias: Any  # (E,)
    weight: Any  # (M, J)
    top: int = static()  # keys that a query sees
    rotary: Rotary | None = None
    queries: Any = None  # q of the queries' tokens, (B, T, J, E)
    weights: Any = None  # w of the queries' tokens, (B, T, J)
    keys: Any = None  # k of the keys' tokens, (B, S, E)

    def project_tokens(self, x: Float[Array, "B N M"]) -> Float[Array, "B N E"]:
        """Returns the index keys of tokens, before they are rotated."""
        x = jax.lax.stop_gradient(x)
        k = _wide(jnp.einsum("bnm,me->bne", x, self.key.astype(x.dtype)))
        centered = k - jnp.mean(k, -1, keepdims=True)
        variance = jnp.mean(jnp.square(centered), -1, keepdims=True)
        return centered * jax.lax.rsqrt(variance + EPSILON) * self.key_scale + self.key_bias

    def with_tokens(self, projected: Float[Array, "B S E"]) -> "Indexer":
        return dataclasses.replace(self, keys=projected)

    def with_queries(self, x: Float[Array, "B T M"], inputs: Float[Array, "B T C"]) -> "Indexer":
        x, inputs = jax.lax.stop_gradient((x, inputs))
        q = _wide(jnp.einsum("btc,cje->btje", inputs, self.query.astype(x.dtype)))
        w = _wide(jnp.einsum("btm,mj->btj", x, self.weight.astype(x.dtype)))
        heads, width = q.shape[2:]
        return dataclasses.replace(self, queries=q, weights=w * (heads * width) ** -0.5)

    def evaluate(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> "KeyScores":
        """Returns I of all pairs.

        Raises:
          ValueError: the tokens of queries or keys were not set.
        """
        if self.queries is None or self.keys is None:
            raise ValueError("indexer: it needs tokens; see `Mechanism.with_tokens`")
        queries = self._rotated(self.queries, q_index)
        keys = self._rotated(self.keys[:, :, None], kv_index)[:, :, 0].astype(queries.dtype)
        matches = jax.nn.relu(jnp.einsum("btje,bse->btjs", queries, keys))
        return KeyScores(jnp.einsum("btj,btjs->bts", self.weights, matches), self.top)

    def needs_all_keys(self, mask: Mask) -> bool:
        """Returns False: a query selects among the keys that the mask shows it."""
        return False

    def _rotated(self, y, positions):
        if self.rotary is None:
            return y
        turned, rest = jnp.split(y, [max(2, y.shape[-1] // 4 * 2)], axis=-1)
        return jnp.concatenate([self.rotary(turned, positions), rest], axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyScores:
    """Scores by which queries select keys."""

    values: Any  # I, (B, T, S)
    top: int = static()

    def select(
        self,
        mask: Mask,
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> "SelectedKeys":
        """Returns the mask of the best keys of each query among those that `mask` allows a head.

        Of keys with equal scores the earlier one is selected.
        """
        allowed = allowed_pairs(mask, q_index, kv_index)
        scores = jnp.where(allowed, jax.lax.stop_gradient(self.values), -jnp.inf)
        order = key_order(kv_index)
        in_order = scores if order is None else jnp.take(scores, order, axis=-1)
        best = jax.lax.top_k(in_order, min(self.top, scores.shape[-1]))[1]
        best = best if order is None else order[best]
        chosen = jnp.zeros(scores.shape, bool)
        chosen = jnp.put_along_axis(chosen, best, True, axis=-1, inplace=False) & allowed
        return SelectedKeys(PerQuery(chosen), PerKey(jnp.arange(scores.shape[-1])[None]))

    def divergence(
        self, weights: Float[Array, "B H T S"], allowed: Bool[Array, "B T S"]
    ) -> Float[Array, ""]:
        """Returns KL(p || softmax(I)) over the allowed keys, the mean over queries that see any.

        The loss of the indexer (equations 3 and 4): p are the weights of attention, summed over the
        heads and divided by their sum over the keys. They are targets and get no gradient.

        Args:
          weights: of all heads, on the allowed keys.
          allowed: which keys a query attends to.
        """
        p = jnp.where(allowed, jnp.abs(jax.lax.stop_gradient(weights).sum(1)), 0)
        total = p.sum(-1, keepdims=True)
        p = p / jnp.where(total > 0, total, 1)
        # A finite stand-in for -inf, since rows without a key would be NaN.
        log_q = jax.nn.log_softmax(jnp.where(allowed, self.values, -1e30))
        seen = p > 0
        terms = jnp.where(seen, p * (jnp.log(jnp.where(seen, p, 1)) - log_q), 0)
        return terms.sum() / jnp.maximum(seen.any(-1).sum(), 1)


def allowed_pairs(
    mask: Mask,
    q_index: Integer[Array | np.ndarray, " T"],
    kv_index: Integer[Array | np.ndarray, " S"],
) -> Bool[Array, "B T S"]:
    """Returns whether a mask allows a pair in any head; B is 1 if it is the same in all rows."""
    allowed = jnp.asarray(mask(q_index[:, None], kv_index[None, :]))
    return allowed.reshape((1,) * (4 - allowed.ndim) + allowed.shape).any(1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SelectedKeys(Mask):
    """The keys that each query selected, whatever their positions."""

    chosen: PerQuery  # booleans (B, T, S)
    slot: PerKey  # number of each key, (1, S)

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "B 1 T S"]:
        return jnp.take(self.chosen.values, self.slot.values[0], axis=-1)[:, None]

    classify_blocks = staticmethod(unknown_blocks)


def indexer(
    width: int,
    query_width: int,
    heads: int,
    index_width: int,
    top: int,
    rotary: Rotary | None = None,
    stddev: float = 0.02,
) -> Indexer:
    """Returns a lightning indexer.

    Args:
      width: M, of the tokens.
      query_width: C, of what queries are projected from.
      heads: J.
      index_width: E.
      top: keys that each query selects.
      rotary: rotates the first half of index queries and keys; None for no rotation.
      stddev: of the initial projections; 0 is 1 / sqrt(fan in).
    """
    inward = matrix_init(stddev, width)
    ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros
    query = matrix_init(stddev, query_width), matrix_axes("width", "", "")
    return Indexer(
        Parameter((query_width, heads, index_width), *query),
        Parameter((width, index_width), inward, matrix_axes("width", "")),
        Parameter((index_width,), ones, vector_axes("")),
        Parameter((index_width,), zeros, vector_axes("")),
        Parameter((width, heads), inward, matrix_axes("width", "")),
        top,
        rotary,
    )


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
