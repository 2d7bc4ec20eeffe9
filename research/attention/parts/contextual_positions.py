"""Contextual position encoding: keys are counted by gates, so that positions depend on content."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.parameters import Constant, Parameter, table_axes
from research.attention.parts.biases import Index, RowBias
from research.attention.parts.content_dependent import (
    ContentDependent,
    PerQuery,
    key_order,
    sums_of_later,
)
from research.attention.parts.masks import Mask
from research.attention.parts.part_options import MechanismPart, Sizes, size_option
from research.options import OptionError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ContextualPosition(RowBias, ContentDependent):
    """score + q_i . e[p_ij], p_ij the sum of the gates of the keys from j on up to the query.

    Contextual position encoding, CoPE (Golovneva et al. 2024, "Contextual Position Encoding:
    Learning to Count What's Important", section 4): gates g_ij = sigmoid(score_ij) of the keys that
    the mask allows (equation 3), positions p_ij = sum of g_im over m = j .. i (equation 4), at most
    the last row of e, and e[p] interpolated linearly between the rows around p (equation 5).

    As in the authors' code, a gate is the sigmoid of the score as it is when this bias comes to it,
    that is, scaled by 1 / sqrt(D), whereas equation 3 writes q . k; q . e is not scaled; and the
    heads share e, which starts at zero. The mask has to be causal.
    """

    required_projections: ClassVar[tuple[str, ...]] = ("query",)
    embedding: Any  # e, a Parameter or an array (P, D); row p is position p

    def evaluate(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> "ContextualBias":
        """Returns the bias with the products of the queries and all rows of the table."""
        dtype = jnp.promote_types(q.dtype, jnp.float32)
        table = self.embedding.astype(q.dtype)
        products = jnp.einsum("bthd,pd->bthp", q, table, preferred_element_type=dtype)
        return ContextualBias(PerQuery(products), key_order(kv_index))

    def needs_all_keys(self, mask: Mask) -> bool:
        """Returns False: only keys that the query sees are counted."""
        return False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ContextualBias(RowBias):
    """score + (q . e)[p], interpolated, at the positions p that the scores of the row count."""

    products: PerQuery  # q . e (B, T, H, P)
    order: Any  # of the keys, (S,); None if they are sorted

    def of_rows(
        self,
        score: Float[Array, "B H T S"],
        q_index: Index,
        kv_index: Index,
        mask: Mask,
    ) -> Float[Array, "B H T S"]:
        gates = jnp.where(mask(q_index, kv_index), jax.nn.sigmoid(score), 0)
        products = jnp.swapaxes(self.products.values, 1, 2).astype(score.dtype)
        position = jnp.minimum(gates + sums_of_later(gates, self.order), products.shape[-1] - 1)
        below = jax.lax.stop_gradient(jnp.floor(position))
        share = position - below
        low, high = (
            jnp.take_along_axis(products, at.astype(jnp.int32), axis=-1)
            for at in (below, jax.lax.stop_gradient(jnp.ceil(position)))
        )
        return score + (low * (1 - share) + high * share)


def contextual_position(width: int, farthest: int) -> ContextualPosition:
    """Returns contextual position encoding for heads of `width` channels, up to `farthest`.

    Raises:
      ValueError: `farthest` is less than 1.
    """
    if farthest < 1:
        raise ValueError(f"contextual_position: farthest = {farthest}; it must be at least 1")
    axes = table_axes("", "head_width")
    return ContextualPosition(Parameter((farthest + 1, width), Constant(0.0), axes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopePosition(MechanismPart):
    """q . (k + e[p]), e learned, p the sum of sigmoid(score) over the keys from k to the query"""

    source = "Golovneva et al. 2024 (CoPE), equations 3-5"
    where = ("self",)

    max_contextual_position: int = size_option(
        16, "position from which all larger ones are treated alike", least=1
    )

    def build(self, sizes: Sizes) -> ContextualPosition:
        """Returns the bias for heads of these sizes.

        Raises:
          OptionError: a query sees later keys.
        """
        if sizes.bidirectional:
            message = "it counts keys from the query back, and the mask is not causal"
            raise OptionError("position", "cope", message)
        # A gate is less than 1, so that no position exceeds the number of keys.
        farthest = min(self.max_contextual_position, sizes.max_length)
        return contextual_position(sizes.head_width, farthest)


CONTEXTUAL_POSITIONS: dict[str, type[MechanismPart]] = {"cope": CopePosition}
