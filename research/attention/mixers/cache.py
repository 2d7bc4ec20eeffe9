"""The decoding state of attention: a ring buffer of what later queries still read.

A mask says what that is: every key (`mask.reach` is None), the latest `reach` of them, and the
first `kept` in any case (attention sinks, Xiao et al. 2023, section 3.2).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from research.attention.errors import Unsupported
from research.attention.parts.masks import Blocks, Bounds, Index, Mask

# What the entries of the cache are called beside the arrays of the tokens.
OWN = ("positions", "step")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Filled(Mask):
    """Keys that exist: the empty slots of a cache carry position -1."""

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return jnp.asarray(kv_index >= 0)

    def blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        shape = np.broadcast_shapes(*(np.shape(b) for b in (q_lo, q_hi, kv_lo, kv_hi)))
        return np.broadcast_to(kv_hi >= 0, shape), np.broadcast_to(kv_lo >= 0, shape)


filled = _Filled()


def empty(mask: Mask, length: int, token: dict[str, jax.ShapeDtypeStruct]) -> PyTree:
    """A cache without tokens.

    Args:
      mask: which keys a query sees.
      length: the most tokens there will be.
      token: what is kept of one token by name, (B, 1, ...).

    Returns:
      For each name an array (B, slots, ...) with min(length, kept + reach) slots;
      "positions" (slots,) int32, -1 where empty; "step", the number of tokens seen.

    Raises:
      Unsupported: the mask lets queries see keys after them without bound.
    """
    if mask.together is None:
        raise Unsupported(
            f"mask {mask} looks ahead, so it cannot be decoded token by token; "
            "causal, window and prefix masks can"
        )
    slots = length if mask.reach is None else min(length, mask.kept + mask.reach)
    return {
        **{
            name: jnp.zeros((a.shape[0], slots, *a.shape[2:]), a.dtype) for name, a in token.items()
        },
        "positions": jnp.full((slots,), -1, jnp.int32),
        "step": jnp.zeros((), jnp.int32),
    }


def positions(state: PyTree, length: int) -> Int[Array, " length"]:
    """The positions of the next `length` tokens."""
    return state["step"] + jnp.arange(length, dtype=jnp.int32)


def extend(mask: Mask, state: PyTree, new: dict[str, Array]) -> tuple[PyTree, PyTree]:
    """Writes T tokens.

    Args:
      mask: the one the cache was made for.
      state: a cache.
      new: what is kept of the tokens, arrays (B, T, ...) by name.

    Returns:
      The new cache, and what the queries of these tokens read: the same arrays with
      "positions", -1 where there is nothing to be read.
    """
    new = {name: a.astype(state[name].dtype) for name, a in new.items()}
    length = next(iter(new.values())).shape[1]
    index = positions(state, length)
    written = _write(mask, state, new, index)
    slots = state["positions"].shape[0]
    # Only a ring of kept + reach slots can wrap. A single token may overwrite its slot before it is
    # read, because what leaves is out of reach. Of several, later ones would overwrite keys that
    # earlier ones still see, so those read old and new side by side.
    if length == 1 or mask.reach is None or slots < mask.kept + mask.reach:
        return written, written
    seen = {name: jnp.concatenate([state[name], new[name]], axis=1) for name in new}
    return written, {**seen, "positions": jnp.concatenate([state["positions"], index])}


def _write(mask: Mask, state: PyTree, new: dict[str, Array], index: Array) -> PyTree:
    """The cache with the new tokens in their slots; of more tokens than slots the last ones."""
    slots, length = state["positions"].shape[0], index.shape[0]
    kept = min(mask.kept, slots)
    ring = slots - kept
    at = jnp.where(index < kept, index, kept + (index - kept) % max(ring, 1))
    if length == 1:
        update = jax.lax.dynamic_update_slice_in_dim
        rows = {name: update(state[name], new[name], at[0], 1) for name in new}
        places = update(state["positions"], index, at[0], 0)
        return {**rows, "positions": places, "step": state["step"] + 1}
    if length > ring:
        # Tokens that later ones of the same chunk would overwrite get distinct slots that do not
        # exist, and are dropped.
        stays = (index >= index[-1] + 1 - ring) | (index < kept)
        at = jnp.where(stays, at, slots + jnp.arange(length))
    scatter = {"unique_indices": True, "mode": "drop"}
    rows = {n: state[n].at[:, at].set(new[n], **scatter) for n in new}
    places = state["positions"].at[at].set(index, **scatter)
    return {**rows, "positions": places, "step": state["step"] + length}
