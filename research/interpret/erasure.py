"""Computes a classifier's logits on an example with some of its tokens erased.

All functions take one example with right-padded tokens, and are traceable by `jit` and `vmap`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from research.tasks.task import PAD, UNKNOWN

BATCH = 16
"""Versions of an example computed at once."""


def batched_logits(
    model: Any, params: PyTree, versions: Int[Array, "K T"], lengths: Int[Array, " K"]
) -> Float[Array, "K C"]:
    """Returns the float32 logits of K versions of an example, computed in batches of `BATCH`.

    Args:
      model: a classifier.
      params: its parameters.
      versions: right-padded tokens.
      lengths: number of tokens of each version.
    """
    # Pad to whole batches: a smaller last batch would be compiled separately.
    filler = -len(lengths) % BATCH
    versions = jnp.pad(versions, ((0, filler), (0, 0)))
    lengths = jnp.pad(lengths, (0, filler), constant_values=1)

    def of_some(some: tuple[Array, Array]) -> Float[Array, "b C"]:
        batch = {"inputs": some[0], "length": some[1]}
        return model.apply({"params": params}, batch, method="forward")

    parts = versions.reshape(-1, BATCH, versions.shape[1]), lengths.reshape(-1, BATCH)
    found = jax.lax.map(of_some, parts)
    return found.reshape(len(lengths), -1)[: len(lengths) - filler]


def keep_only(
    tokens: Int[Array, " T"], keep: Bool[Array, " T"]
) -> tuple[Int[Array, " T"], Int[Array, ""]]:
    """Returns the kept tokens, moved together and right-padded, and their number.

    A classifier has no output for an empty text: if none is kept, one unknown token is left.
    """
    number = keep.sum()
    # A stable sort moves kept tokens to the front in their order, with static shapes.
    order = jnp.argsort(~keep, stable=True)
    moved = jnp.where(jnp.arange(len(tokens)) < number, tokens[order], PAD)
    moved = moved.at[0].set(jnp.where(number > 0, moved[0], UNKNOWN))
    return moved, jnp.maximum(number, 1)


def logits_of_subsets(
    model: Any, params: PyTree, tokens: Int[Array, " T"], keep: Bool[Array, "K T"]
) -> Float[Array, "K C"]:
    """Returns logits with only the tokens of each mask; the others are deleted, not masked out."""
    return batched_logits(model, params, *jax.vmap(keep_only, (None, 0))(tokens, keep))


def leave_one_out_masks(real: Bool[Array, " T"]) -> Bool[Array, "T T"]:
    """Returns masks that leave out one token each: Jain and Wallace 2019, algorithm 1.

    Rows of padding equal `real`.
    """
    return real & ~jnp.eye(len(real), dtype=bool)


def leave_one_out_tokens(tokens: Int[Array, " T"], real: Bool[Array, " T"]) -> Int[Array, "T T"]:
    """Returns copies of the tokens with one made unknown each: Abnar and Zuidema 2020, section 2.

    Rows of padding equal the tokens.
    """
    return jnp.where(jnp.diag(real), UNKNOWN, tokens)
