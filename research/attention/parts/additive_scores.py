"""Additive scores, v . tanh(W q + U k), a feed-forward network applied to every pair."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.parameters import Parameter, matrix_axes, matrix_init, table_axes
from research.attention.parts.masks import Index
from research.attention.parts.part_options import MechanismPart, Sizes, size_option
from research.attention.parts.scores import NonDotScore, Score


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Additive(NonDotScore):
    """v . tanh(W q + U k)."""

    query: Any  # W (H, D, A)
    key: Any  # U (K, D, A)
    vector: Any  # v (H, A)

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K E"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        hidden_q = jnp.einsum("bthd,hda->bhta", q, self.query.astype(q.dtype))
        hidden_k = jnp.einsum("bskd,kda->bksa", k, self.key.astype(k.dtype))
        return additive_scores(hidden_q, hidden_k, self.vector)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Concat(NonDotScore):
    """v . tanh(W [q; k])."""

    weight: Any  # W (H, 2 D, A), the rows of the query first
    vector: Any  # v (H, A)

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K E"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        # W [q; k] = W_q q + W_k k, so the T S concatenated pairs are never built.
        of_q, of_k = jnp.split(self.weight.astype(q.dtype), [q.shape[-1]], axis=1)
        hidden_q = jnp.einsum("bthd,hda->bhta", q, of_q)
        hidden_k = jnp.einsum("bshd,hda->bhsa", jnp.repeat(k, q.shape[2] // k.shape[2], 2), of_k)
        return additive_scores(hidden_q, hidden_k, self.vector)


def additive_scores(
    hidden_q: Float[Array, "B H T A"],
    hidden_k: Float[Array, "B K S A"],
    vector: Float[Array, "H A"],
) -> Float[Array, "B H T S"]:
    """Returns v . tanh(hidden_q + hidden_k) for every pair, in float32 or wider.

    Memory is O(B H T S A).
    """
    heads, kv_heads = hidden_q.shape[1], hidden_k.shape[1]
    hidden_k = jnp.repeat(hidden_k, heads // kv_heads, axis=1)
    dtype = jnp.promote_types(hidden_q.dtype, jnp.float32)
    hidden = jnp.tanh(hidden_q[:, :, :, None] + hidden_k[:, :, None, :])
    return jnp.einsum(
        "bhtsa,ha->bhts", hidden, vector.astype(hidden.dtype), preferred_element_type=dtype
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditiveScore(MechanismPart):
    """v . tanh(W q + U k)"""

    source = "Bahdanau et al. 2015, appendix A.1.2"

    score_width: int = size_option(0, "A, hidden width of the score; 0: head_width")

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        heads, kv_heads, width = sizes.num_heads, sizes.num_kv_heads, sizes.head_width
        hidden, init = self.score_width or width, matrix_init(0.0, width)
        return Additive(
            Parameter((heads, width, hidden), init, matrix_axes("heads", "", "", roles="sio")),
            Parameter(
                (kv_heads, width, hidden), init, matrix_axes("kv_heads", "", "", roles="sio")
            ),
            _vector(heads, hidden),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConcatScore(MechanismPart):
    """v . tanh(W [q; k])"""

    source = "Luong et al. 2015, section 3.1"

    score_width: int = size_option(0, "A, hidden width of the score; 0: head_width")

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        heads, width = sizes.num_heads, sizes.head_width
        hidden, init = self.score_width or width, matrix_init(0.0, width)
        weight = Parameter(
            (heads, 2 * width, hidden), init, matrix_axes("heads", "", "", roles="sio")
        )
        return Concat(weight, _vector(heads, hidden))


def _vector(num_heads: int, hidden: int) -> Parameter:
    return Parameter(
        (num_heads, hidden), matrix_init(0.0, hidden), table_axes("heads", "", roles="so")
    )


ADDITIVE_SCORES: dict[str, type[MechanismPart]] = {
    "additive": AdditiveScore,
    "concat": ConcatScore,
}
