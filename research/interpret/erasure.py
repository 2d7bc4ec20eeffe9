"""A classifier's outputs on an example without some of its tokens.

Everything is of one example, whose tokens are right-padded; it can be traced and goes through
`vmap`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from research.tasks.task import PAD, UNKNOWN

BATCH = 16
"""Versions of an example that are computed at once."""


def logits_of(
    model: Any, params: PyTree, versions: Int[Array, "K T"], lengths: Int[Array, " K"]
) -> Float[Array, "K C"]:
    """Returns the float32 logits of K versions of an example, a few at a time.

    Args:
      model: a classifier.
      params: its parameters.
      versions: tokens, right-padded.
      lengths: how many of them there are.
    """
    # Whole batches: what is left over would be compiled a second time.
    filler = -len(lengths) % BATCH
    versions = jnp.pad(versions, ((0, filler), (0, 0)))
    lengths = jnp.pad(lengths, (0, filler), constant_values=1)

    def of_some(some: tuple[Array, Array]) -> Float[Array, "b C"]:
        batch = {"inputs": some[0], "length": some[1]}
        return model.apply({"params": params}, batch, method="of_batch")

    parts = versions.reshape(-1, BATCH, versions.shape[1]), lengths.reshape(-1, BATCH)
    found = jax.lax.map(of_some, parts)
    return found.reshape(len(lengths), -1)[: len(lengths) - filler]


def kept_only(
    tokens: Int[Array, " T"], keep: Bool[Array, " T"]
) -> tuple[Int[Array, " T"], Int[Array, ""]]:
    """Returns the tokens that are kept, side by side and right-padded, and how many they are.

    Of nothing there is no output: one unknown token is left if none is kept.
    """
    number = keep.sum()
    order = jnp.argsort(~keep, stable=True)
    moved = jnp.where(jnp.arange(len(tokens)) < number, tokens[order], PAD)
    moved = moved.at[0].set(jnp.where(number > 0, moved[0], UNKNOWN))
    return moved, jnp.maximum(number, 1)


def logits_of_kept(
    model: Any, params: PyTree, tokens: Int[Array, " T"], keep: Bool[Array, "K T"]
) -> Float[Array, "K C"]:
    """Returns logits with the tokens of each mask alone; others are as if they had never been."""
    return logits_of(model, params, *jax.vmap(kept_only, (None, 0))(tokens, keep))


def each_without(real: Bool[Array, " T"]) -> Bool[Array, "T T"]:
    """Returns masks of what is left without each token: Jain and Wallace 2019, algorithm 1.

    Rows of padding are `real` itself.
    """
    return real & ~jnp.eye(len(real), dtype=bool)


def each_blanked(tokens: Int[Array, " T"], real: Bool[Array, " T"]) -> Int[Array, "T T"]:
    """Returns the tokens with each alone made unknown: Abnar and Zuidema 2020, section 2.

    Rows of padding are the tokens themselves.
    """
    return jnp.where(jnp.diag(real), UNKNOWN, tokens)
