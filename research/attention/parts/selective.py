"""Selective attention: queries lower the scores that keys get from later queries."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.parts.biases import Index, RowBias
from research.attention.parts.content_dependent import ContentDependent
from research.attention.parts.masks import Mask
from research.attention.parts.segments import places_in_segments


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Selection(RowBias, ContentDependent):
    """score - F_ij, for each head; F_ij = sum of S_mj over the queries m before i.

    Selective attention (Leviathan et al. 2024, "Selective Attention Improves Transformer", section
    3): S_mj = max(score_mj, 0) of the first head (section 3.2), zero for a token itself, for the
    first token, and for pairs that the mask forbids. The first token is that of a segment if there
    are segments. The mask has to be causal.

    F of each key is stored in the cache, where each query adds its S.
    """

    changes_tokens: ClassVar[bool] = True
    selected: Any = None  # F of the keys before the first of the queries, (B, S); None: zero

    def project_tokens(self, x: Float[Array, "B N M"]) -> Float[Array, "B N"]:
        """Returns zeros: no query has selected a new token."""
        return jnp.zeros(x.shape[:2], jnp.promote_types(x.dtype, jnp.float32))

    def with_tokens(self, projected: Float[Array, "B S"]) -> "Selection":
        return Selection(projected)

    def evaluate(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> "SelectionBias":
        """Returns the bias for these keys; queries have to be in order."""
        zeros = jnp.zeros(k.shape[:2], jnp.promote_types(k.dtype, jnp.float32))
        return SelectionBias(zeros if self.selected is None else self.selected)

    def needs_all_keys(self, mask: Mask) -> bool:
        """Returns False: a query selects among the keys that it sees."""
        return False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SelectionBias(RowBias):
    """score - F, F accumulated over consecutive queries."""

    selected: Any  # F before the first query, (B, S)

    def of_rows(
        self, score: Float[Array, "B H T S"], q_index: Index, kv_index: Index, mask: Mask
    ) -> Float[Array, "B H T S"]:
        chosen = _chosen(score, q_index, kv_index, mask)
        before = jnp.pad(jnp.cumsum(chosen, axis=1)[:, :-1], ((0, 0), (1, 0), (0, 0)))
        return score - (self.selected[:, None] + before)[:, None].astype(score.dtype)

    def stored_after(
        self, score: Float[Array, "B H T S"], q_index: Index, kv_index: Index, mask: Mask
    ) -> Float[Array, "B S"]:
        chosen = _chosen(score, q_index, kv_index, mask)
        return self.selected + jnp.sum(chosen, axis=1).astype(self.selected.dtype)


def _chosen(
    score: Float[Array, "B H T S"], q_index: Index, kv_index: Index, mask: Mask
) -> Float[Array, "B T S"]:
    """Returns S."""
    places = places_in_segments(mask)
    if places is None:
        first = kv_index == 0
    else:
        first = jnp.take(places, jnp.ravel(kv_index), axis=1, mode="clip")[:, None] == 0
    allowed = jnp.broadcast_to(mask(q_index, kv_index), score.shape)[:, 0]
    return jnp.where(allowed & (kv_index != q_index) & ~first, jax.nn.relu(score[:, 0]), 0)
