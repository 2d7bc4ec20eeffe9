"""Parts that look at content: at what tokens say, and not only at where they stand.

Most parts are functions of positions. One that is not is a `Looks` beside being a mask or a bias.
It can learn projections of the tokens, whose results are kept of each key's token: over a whole
sequence, and in the cache while decoding. Once queries and keys are known, `see` makes of it a
part with one entry to each query (`OfQueries`) or key (`OfKeys`) in its arrays, which is called
like any other: an implementation in blocks gives it the entries of a block.
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
    """An array with one entry to each query: (B, T, ...)."""

    values: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OfKeys:
    """An array with one entry to each key: (B, S, ...)."""

    values: Any


class Looks:
    """What a part that looks at content says beside what all parts of its kind do.

    Attributes:
      reads: which of the projections "query" and "key" it looks at.
    """

    reads: ClassVar[tuple[str, ...]] = ()

    def tokens(self, x: Float[Array, "B N M"]) -> Float[Array, "B N ..."] | None:
        """What is kept of tokens for `see`, float32 or wider; None if nothing is."""
        return None

    def given(self, kept: Float[Array, "B S ..."]) -> Any:
        """Itself with what was kept of the keys' tokens."""
        raise NotImplementedError

    def see(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Integer[Array | np.ndarray, " T"],
        kv_index: Integer[Array | np.ndarray, " S"],
    ) -> Any:
        """The part for these queries and keys: a mask or a bias like any other.

        Args:
          q: queries, rotated if positions rotate.
          k: keys.
          q_index: absolute positions of the queries.
          kv_index: absolute positions of the keys, in any order; -1 where there is none.
        """
        raise NotImplementedError

    def needs_all(self, mask: Mask) -> bool:
        """Whether it needs all keys so far, even those that no query sees by `mask` any more."""
        return True


def looks(x: Any) -> bool:
    """Whether this is a part that has yet to see what it looks at."""
    return isinstance(x, Looks)


def of_tokens(x: Any) -> bool:
    """Whether this is an array with one entry to each query or key."""
    return isinstance(x, OfQueries | OfKeys)


def has_content(tree: Any) -> bool:
    """Whether there is a part in it that looks at content, or has seen it."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: looks(x) or of_tokens(x))
    return any(looks(x) or of_tokens(x) for x in leaves)


def in_blocks(tree: Any, q_block: int, kv_block: int) -> Any:
    """The same with arrays (blocks, B, block, ...) of queries and keys, zeros at the end."""

    def cut(x: Any) -> Any:
        if not of_tokens(x):
            return x
        block = q_block if isinstance(x, OfQueries) else kv_block
        batch, length, *rest = x.values.shape
        values = jnp.pad(x.values, ((0, 0), (0, -length % block), *[(0, 0)] * len(rest)))
        return type(x)(jnp.moveaxis(values.reshape(batch, -1, block, *rest), 1, 0))

    return jax.tree.map(cut, tree, is_leaf=of_tokens)


def of_block(tree: Any, row: Any, column: Any) -> Any:
    """What `in_blocks` cut, for one block of queries and one of keys."""

    def pick(x: Any) -> Any:
        if not of_tokens(x):
            return x
        at = row if isinstance(x, OfQueries) else column
        return type(x)(jax.lax.dynamic_index_in_dim(x.values, at, keepdims=False))

    return jax.tree.map(pick, tree, is_leaf=of_tokens)
