"""The decoding state of attention: a ring buffer of the keys and values that queries still see.

The mask determines which: all keys if `mask.reach` is None, otherwise the latest `reach` keys and
the first `num_sink_tokens` keys (attention sinks, Xiao et al. 2023, section 3.2).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from research.attention.errors import Unsupported
from research.attention.parts.masks import Blocks, Bounds, Index, Mask

# Entries of the cache that are not arrays of tokens.
NON_TOKEN_ENTRIES = ("positions", "step")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Filled(Mask):
    """Keys that exist: the empty slots of a cache carry position -1."""

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        return jnp.asarray(kv_index >= 0)

    def classify_blocks(self, q_lo: Bounds, q_hi: Bounds, kv_lo: Bounds, kv_hi: Bounds) -> Blocks:
        shape = np.broadcast_shapes(*(np.shape(b) for b in (q_lo, q_hi, kv_lo, kv_hi)))
        return np.broadcast_to(kv_hi >= 0, shape), np.broadcast_to(kv_lo >= 0, shape)


filled = _Filled()


def empty(mask: Mask, length: int, token: dict[str, jax.ShapeDtypeStruct]) -> PyTree:
    """Returns an empty cache.

    Args:
      mask: the mask of the attention, which determines the number of slots.
      length: the maximum number of tokens.
      token: shapes and dtypes of the arrays stored for one token, by name, (B, 1, ...).

    Returns:
      For each name an array (B, slots, ...) with min(length, kept + reach) slots;
      "positions" (slots,) int32, -1 where empty; "step", the number of tokens seen.

    Raises:
      Unsupported: the mask lets queries see arbitrarily late keys.
    """
    if mask.prefix_length is None:
        raise Unsupported(
            f"mask {mask} looks ahead, so it cannot be decoded token by token; "
            "causal, window and prefix masks can"
        )
    slots = length if mask.reach is None else min(length, mask.num_sink_tokens + mask.reach)
    return {
        **{
            name: jnp.zeros((a.shape[0], slots, *a.shape[2:]), a.dtype) for name, a in token.items()
        },
        "positions": jnp.full((slots,), -1, jnp.int32),
        "step": jnp.zeros((), jnp.int32),
    }


def positions(state: PyTree, length: int) -> Int[Array, " length"]:
    """Returns the positions of the next `length` tokens."""
    return state["step"] + jnp.arange(length, dtype=jnp.int32)


def extend(mask: Mask, state: PyTree, new: dict[str, Array]) -> tuple[PyTree, PyTree]:
    """Writes T tokens to the cache.

    Args:
      mask: the mask that the cache was made for.
      state: a cache.
      new: the arrays of the new tokens by name, (B, T, ...).

    Returns:
      The new cache, and the arrays that the queries of these tokens attend to, by name, with
      "positions", -1 for empty slots.
    """
    new = {name: a.astype(state[name].dtype) for name, a in new.items()}
    length = next(iter(new.values())).shape[1]
    index = positions(state, length)
    written = _write(mask, state, new, index)
    slots = state["positions"].shape[0]
    # Only a ring of kept + reach slots can wrap. A single token may be written before attention
    # reads the cache, because the key that it evicts is out of reach. With several tokens, later
    # ones would evict keys that earlier ones still see, so the queries get old and new keys
    # concatenated.
    if length == 1 or mask.reach is None or slots < mask.num_sink_tokens + mask.reach:
        return written, written
    seen = {name: jnp.concatenate([state[name], new[name]], axis=1) for name in new}
    return written, {**seen, "positions": jnp.concatenate([state["positions"], index])}


def replace(
    mask: Mask, before: PyTree, after: PyTree, changed: dict[str, Float[Array, "B S ..."]]
) -> PyTree:
    """Returns a cache that stores something else of the tokens that were attended to.

    Args:
      mask: the mask that the cache was made for.
      before: the cache that was given to `extend`.
      after: the cache that it returned.
      changed: by name, what replaces arrays that it returned to be attended to.
    """
    slots = before["positions"].shape[0]
    for name, a in changed.items():
        if a.shape[1] > slots:
            # What was attended to is the old slots and the new tokens.
            state = {**before, name: a[:, :slots]}
            new = {name: a[:, slots:]}
            a = _write(mask, state, new, positions(before, a.shape[1] - slots))[name]
        after = {**after, name: a}
    return after


def _write(mask: Mask, state: PyTree, new: dict[str, Array], index: Array) -> PyTree:
    """Returns the cache with the new tokens written; if they exceed the slots, the last ones."""
    slots, length = state["positions"].shape[0], index.shape[0]
    kept = min(mask.num_sink_tokens, slots)
    ring = slots - kept
    at = jnp.where(index < kept, index, kept + (index - kept) % max(ring, 1))
    if length == 1:
        update = jax.lax.dynamic_update_slice_in_dim
        rows = {name: update(state[name], new[name], at[0], 1) for name in new}
        places = update(state["positions"], index, at[0], 0)
        return {**rows, "positions": places, "step": state["step"] + 1}
    if length > ring:
        # Tokens that later tokens of the same chunk would overwrite get slots out of bounds, which
        # the scatter drops. The slots are distinct to satisfy `unique_indices`.
        stays = (index >= index[-1] + 1 - ring) | (index < kept)
        at = jnp.where(stays, at, slots + jnp.arange(length))
    scatter = {"unique_indices": True, "mode": "drop"}
    rows = {n: state[n].at[:, at].set(new[n], **scatter) for n in new}
    places = state["positions"].at[at].set(index, **scatter)
    return {**rows, "positions": places, "step": state["step"] + length}
