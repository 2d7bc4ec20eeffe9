"""Segments of packed sequences: the mask that keeps them apart, and places within them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from research.attention.parts.masks import Index, Mask, conjuncts, unknown_blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """A query sees the keys that carry its own segment id.

    A segment is contiguous: a mixer with a state starts it anew wherever the id changes.
    """

    q_segments: Any  # integers (B, T)
    kv_segments: Any  # integers (B, S)

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        queries = jnp.take(self.q_segments, q_index, axis=1, mode="clip")
        keys = jnp.take(self.kv_segments, kv_index, axis=1, mode="clip")
        return (queries == keys)[:, None]

    classify_blocks = staticmethod(unknown_blocks)


def segments(q_segments: Int[Array, "B T"], kv_segments: Int[Array, "B S"]) -> Mask:
    """Returns the mask of keys in the query's own segment, for packed documents.

    The arrays are indexed by absolute position. Source: Krell et al. 2021, section 3.2.
    """
    return Segments(q_segments, kv_segments)


def places_of_ids(ids: Int[Array | np.ndarray, "B T"]) -> Int[Array, "B T"]:
    """Returns how many tokens of its contiguous segment are before each token, from their ids."""
    index = jnp.arange(ids.shape[1], dtype=jnp.int32)
    starts = jnp.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def places_in_segments(mask: Mask | None) -> Int[Array, "B T"] | None:
    """Returns `places_of_ids` for the segments of a mask; None if it has none."""
    found = [] if mask is None else [m for m in conjuncts(mask) if isinstance(m, Segments)]
    return places_of_ids(found[0].q_segments) if found else None
