"""Restricts an alignment to a window around the median of the previous weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from research.attention.mixers.sequential.alignments import Alignment, Position, Positions
from research.attention.mixers.sequential.monotonic import Monotonic
from research.attention.parameters import Parameter
from research.attention.parts.masks import Index, Mask, Padding


def median(weights: Float[Array, "*rows S"]) -> Int[Array, "*rows"]:
    """Returns the first position with at least half of the weight up to it; 0 if all are zero."""
    reached = jnp.cumsum(weights, axis=-1)
    return jnp.argmax(2 * reached >= reached[..., -1:], axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NearMask(Mask):
    """Queries see the keys that are marked for their head."""

    near: Any  # booleans (B, H, S)

    def __call__(self, q_index: Index, kv_index: Index) -> Bool[Array, "..."]:
        keys = jnp.take(self.near, kv_index, axis=2, mode="clip")
        pairs = np.broadcast_shapes(q_index.shape, kv_index.shape)
        return jnp.broadcast_to(keys, keys.shape[:2] + pairs)

    # The array is traced, so every block is unknown, as for padding.
    classify_blocks = staticmethod(Padding.classify_blocks)


@dataclasses.dataclass(frozen=True)
class Windowed(Alignment):
    """Restricts another alignment to keys near the median of the previous weights.

    The keys are those with |s - median| <= window, separately for each head. Chorowski et al. 2015,
    section 2.3, whose window has one key less on the right. The first query sees all keys, and so
    does a query after one with all weights zero. The window changes which keys are allowed; it does
    not save computation.

    Attributes:
      inner: the alignment.
      window: keys on either side, at least 1.
      num_heads: H.

    Raises:
      ValueError: `window` is less than 1, or `inner` is monotonic, because such an alignment
        continues from its own position.
    """

    inner: Alignment
    window: int
    num_heads: int

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f"window = {self.window}; it must be at least 1")
        if isinstance(self.inner, Monotonic):
            raise ValueError("a monotonic alignment only moves forward, and takes no window")

    def parameters(self) -> dict[str, Parameter]:
        """Returns the parameters of `inner`."""
        return self.inner.parameters()

    def precompute_keys(
        self, params: dict[str, Array], k: Float[Array, "B S K D"]
    ) -> dict[str, Float[Array, "B S ..."]]:
        """Returns `inner.precompute_keys(params, k)`."""
        return self.inner.precompute_keys(params, k)

    def init_state(self, batch: int, length: int, dtype: Any) -> PyTree:
        """Returns the state of `inner`, and zeros (B, H, S), float32 or wider, as weights."""
        wide = jnp.promote_types(dtype, jnp.float32)
        return (
            self.inner.init_state(batch, length, dtype),
            jnp.zeros((batch, self.num_heads, length), wide),
        )

    def step(
        self,
        params: dict[str, Array],
        q: Float[Array, "B 1 H D"],
        memory: dict[str, Float[Array, "B S ..."]],
        q_index: Position,
        kv_index: Positions,
        mask: Mask | None,
        state: PyTree,
    ) -> tuple[Float[Array, "B H S"], PyTree]:
        """See `Alignment`."""
        inner, before = state
        distance = jnp.arange(before.shape[-1]) - median(before)[..., None]
        none = ~jnp.any(before > 0, axis=-1, keepdims=True)
        near = NearMask((jnp.abs(distance) <= self.window) | none)
        allowed = near if mask is None else mask & near
        weights, inner = self.inner.step(params, q, memory, q_index, kv_index, allowed, inner)
        return weights, (inner, weights.astype(before.dtype))
