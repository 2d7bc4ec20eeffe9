"""Local attention around a predicted position (Luong et al. 2015, section 3.2, "local-p")."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.attention.parameters import Parameter, matrix_axes, matrix_init, table_axes
from research.attention.parts.masks import LONGEST, Index, static
from research.attention.parts.normalizers import Normalizer, Parts


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PredictedWindow:
    """Window p +- size with center p = L sigmoid(v . tanh(W q)) and Gaussian weights within it.

    L is the number of keys. Equations 9 and 10.
    """

    weight: Any  # W (H, D, D)
    vector: Any  # v (H, D)
    size: int = static()

    def restrict(
        self,
        normalizer: Normalizer,
        q: Float[Array, "B T H D"],
        lengths: Array | int,
        kv_index: Index,
        first: Any = 0,
    ) -> "WindowedNormalizer":
        """Returns the normalizer restricted to the window that each query predicts.

        Args:
          normalizer: maps scores to weights within the window.
          q: queries.
          lengths: L of each query, broadcastable to (B, T, H).
          kv_index: absolute key positions, (S,).
          first: position of the first of the L keys, broadcastable to (B, T, H).
        """
        dtype = jnp.promote_types(q.dtype, jnp.float32)
        hidden = jnp.tanh(jnp.einsum("bthd,hde->bthe", q, self.weight.astype(q.dtype)))
        at = jnp.einsum("bthe,he->bth", hidden.astype(dtype), self.vector.astype(dtype))
        center = first + jax.nn.sigmoid(at) * jnp.asarray(lengths - first, dtype)
        return WindowedNormalizer(
            normalizer, jnp.swapaxes(center, 1, 2), jnp.asarray(kv_index), self.size
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowedNormalizer(Normalizer):
    """Weights of `inner` within the windows, times exp(-(s - p)^2 / (2 sigma^2)).

    sigma = size / 2. As in equation 10 the factor comes after the normalizer, so the weights of a
    row sum to less than 1.
    """

    name: ClassVar[str] = "predicted window"
    inner: Normalizer
    center: Any  # p (B, H, T)
    kv_index: Any  # (S,)
    size: int = static()

    def numerator_and_divisor(
        self, scores: Float[Array, "B H T S"], mask: Bool[Array, "..."] | None = None
    ) -> Parts:
        distance = self.kv_index - self.center[..., None]
        near = jnp.abs(distance) <= self.size
        numerator, divisor = self.inner.numerator_and_divisor(
            scores, near if mask is None else mask & near
        )
        return numerator * jnp.exp(-2 * jnp.square(distance / self.size)), divisor


def predicted_window(num_heads: int, width: int, size: int) -> PredictedWindow:
    """Returns a window of `size` keys on either side of a center that each query predicts.

    Raises:
      ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"predicted_window: size = {size}; it must be at least 1")
    size, axes = min(size, LONGEST), ("heads", "head_width")
    weight = Parameter(
        (num_heads, width, width), matrix_init(0.0, width), matrix_axes(*axes, "", roles="sio")
    )
    return PredictedWindow(
        weight,
        Parameter((num_heads, width), matrix_init(0.0, width), table_axes(*axes, roles="so")),
        size,
    )
