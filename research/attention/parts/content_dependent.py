"""Content-dependent masks and biases: functions of the tokens, not only of their positions.

Most parts are functions of positions. A content-dependent part inherits from `ContentDependent` as
well as from `Mask` or `Bias`; a `Normalizer` does if it needs the order of the keys. It can learn
projections of the tokens, whose results are stored per key: for a whole sequence, or in the cache
while decoding. Once queries and keys are known, `evaluate` turns it into an ordinary part whose
arrays have one entry per query (`PerQuery`) or per key (`PerKey`); a blockwise implementation
passes it the entries of one block.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.parts.masks import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerQuery:
    """An array with one entry per query: (B, T, ...)."""

    values: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerKey:
    """An array with one entry per key: (B, S, ...)."""

    values: Any


def key_order(kv_index: Integer[Array | np.ndarray, " S"]) -> Integer[Array, " S"] | None:
    """Returns the order that sorts keys by position; None if they are known to be sorted."""
    if isinstance(kv_index, np.ndarray) and (np.diff(kv_index) >= 0).all():
        return None
    return jnp.argsort(kv_index)


def sums_of_later(
    x: Float[Array, "*rows S"], order: Integer[Array, " S"] | None
) -> Float[Array, "*rows S"]:
    """Returns for each key the sum over the keys at later positions.

    Args:
      x: one number per key, along the last axis.
      order: of the keys; see `key_order`.
    """
    x = x if order is None else jnp.take(x, order, axis=-1)
    sums = jax.lax.cumsum(x, axis=x.ndim - 1, reverse=True)
    later = jnp.pad(sums[..., 1:], [(0, 0)] * (x.ndim - 1) + [(0, 1)])
    return later if order is None else jnp.take(later, jnp.argsort(order), axis=-1)


class ContentDependent:
    """The additional interface of content-dependent masks and biases.

    Attributes:
      required_projections: the projections it needs, of "query" and "key".
      mixes_segments: whether what a query sees of its own segment depends on other segments.
      changes_tokens: whether queries change what is stored of the keys; see
        `RowBias.stored_after`.
    """

    required_projections: ClassVar[tuple[str, ...]] = ()
    mixes_segments: ClassVar[bool] = False
    changes_tokens: ClassVar[bool] = False

    def project_tokens(self, x: Float[Array, "B N M"]) -> Float[Array, "B N ..."] | None:
        """Returns what to store per token for `evaluate`, float32 or wider; None for nothing."""
        return None

    def with_tokens(self, projected: Float[Array, "B S ..."]) -> Any:
        """Returns this part holding the stored array of the keys' tokens."""
        raise NotImplementedError

    def with_queries(self, x: Float[Array, "B T M"], inputs: Float[Array, "B T C"]) -> Any:
        """Returns this part holding what it needs of the queries' tokens.

        Args:
          x: the tokens.
          inputs: what their queries are projected from: x, or latent vectors of C channels.
        """
        return self

    def evaluate(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> Any:
        """Returns the part evaluated for these queries and keys: an ordinary mask or bias.

        Args:
          q: queries, rotated if positions rotate.
          k: keys.
          q_index: absolute positions of the queries.
          kv_index: absolute positions of the keys, in any order; -1 where there is none.
        """
        raise NotImplementedError

    def needs_all_keys(self, mask: Mask) -> bool:
        """Returns whether it needs all past keys, even keys that `mask` hides from all queries."""
        return True


def is_unevaluated(x: Any) -> bool:
    """Returns whether x is a content-dependent part on which `evaluate` has not been called yet."""
    return isinstance(x, ContentDependent)


def is_per_token(x: Any) -> bool:
    """Returns whether x is an array with one entry per query or key."""
    return isinstance(x, PerQuery | PerKey)


def has_content(tree: Any) -> bool:
    """Returns whether a tree contains a content-dependent part, before or after `evaluate`."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: is_unevaluated(x) or is_per_token(x))
    return any(is_unevaluated(x) or is_per_token(x) for x in leaves)


def cut_tree_into_blocks(tree: Any, q_block: int, kv_block: int) -> Any:
    """Cuts the per-query and per-key arrays of a tree into zero-padded (blocks, B, block, ...)."""

    def cut(x: Any) -> Any:
        if not is_per_token(x):
            return x
        block = q_block if isinstance(x, PerQuery) else kv_block
        batch, length, *rest = x.values.shape
        values = jnp.pad(x.values, ((0, 0), (0, -length % block), *[(0, 0)] * len(rest)))
        return type(x)(jnp.moveaxis(values.reshape(batch, -1, block, *rest), 1, 0))

    return jax.tree.map(cut, tree, is_leaf=is_per_token)


def take_block(tree: Any, row: Any, column: Any) -> Any:
    """Returns one block's entries, of queries and of keys, from what `cut_tree_into_blocks` cut."""

    def pick(x: Any) -> Any:
        if not is_per_token(x):
            return x
        at = row if isinstance(x, PerQuery) else column
        return type(x)(jax.lax.dynamic_index_in_dim(x.values, at, keepdims=False))

    return jax.tree.map(pick, tree, is_leaf=is_per_token)
