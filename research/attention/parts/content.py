"""Content-dependent masks and biases: functions of the tokens, not only of their positions.

Most parts are functions of positions. A content-dependent part inherits from `Looks` as well as
from `Mask` or `Bias`. It can learn projections of the tokens, whose results are stored per key: for
a whole sequence, or in the cache while decoding. Once queries and keys are known, `see` turns it
into an ordinary part whose arrays have one entry per query (`OfQueries`) or per key (`OfKeys`); a
blockwise implementation passes it the entries of one block.
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
class OfQueries:
    """An array with one entry per query: (B, T, ...)."""

    values: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfKeys:
    """An array with one entry per key: (B, S, ...)."""

    values: Any


class Looks:
    """The additional interface of content-dependent masks and biases.

    Attributes:
      reads: the projections it needs, of "query" and "key".
    """

    reads: ClassVar[tuple[str, ...]] = ()

    def tokens(self, x: Float[Array, "B N M"]) -> Float[Array, "B N ..."] | None:
        """Returns the array to store per token for `see`, float32 or wider; None for nothing."""
        return None

    def given(self, kept: Float[Array, "B S ..."]) -> Any:
        """Returns this part holding the stored array of the keys' tokens."""
        raise NotImplementedError

    def see(
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

    def needs_all(self, mask: Mask) -> bool:
        """Returns whether it needs all past keys, even keys that `mask` hides from all queries."""
        return True


def looks(x: Any) -> bool:
    """Returns whether x is a content-dependent part on which `see` has not been called yet."""
    return isinstance(x, Looks)


def of_tokens(x: Any) -> bool:
    """Returns whether x is an array with one entry per query or key."""
    return isinstance(x, OfQueries | OfKeys)


def has_content(tree: Any) -> bool:
    """Returns whether a tree contains a content-dependent part, before or after `see`."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: looks(x) or of_tokens(x))
    return any(looks(x) or of_tokens(x) for x in leaves)


def in_blocks(tree: Any, q_block: int, kv_block: int) -> Any:
    """Cuts the per-query and per-key arrays of a tree into zero-padded (blocks, B, block, ...)."""

    def cut(x: Any) -> Any:
        if not of_tokens(x):
            return x
        block = q_block if isinstance(x, OfQueries) else kv_block
        batch, length, *rest = x.values.shape
        values = jnp.pad(x.values, ((0, 0), (0, -length % block), *[(0, 0)] * len(rest)))
        return type(x)(jnp.moveaxis(values.reshape(batch, -1, block, *rest), 1, 0))

    return jax.tree.map(cut, tree, is_leaf=of_tokens)


def of_block(tree: Any, row: Any, column: Any) -> Any:
    """Returns one block's entries, of queries and of keys, from a tree cut by `in_blocks`."""

    def pick(x: Any) -> Any:
        if not of_tokens(x):
            return x
        at = row if isinstance(x, OfQueries) else column
        return type(x)(jax.lax.dynamic_index_in_dim(x.values, at, keepdims=False))

    return jax.tree.map(pick, tree, is_leaf=of_tokens)
