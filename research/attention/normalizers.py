"""Normalizers: from scores to weights.

A normalizer is given as a numerator and a divisor, weights = numerator / divisor, so that an
implementation can divide after the product with the values, where there are D numbers to a row
instead of S. A new normalizer is one function here and one line in ``NORMALIZERS``.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Finite, so that a row with nothing allowed has no inf - inf in it, forwards or backwards.
FORBIDDEN = -1e30

Parts = tuple[Float[Array, "B H T S"], Float[Array, "B H T 1"]]


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """A named way to turn scores into weights.

    Attributes:
        name: how configurations and messages call it.
        parts: ``(scores, mask) -> (numerator, divisor)``; the divisor is never zero.
    """

    name: str
    parts: Callable[[Float[Array, "B H T S"], Bool[Array, "..."] | None], Parts]

    def __call__(
        self, scores: Float[Array, "B H T S"], mask: Bool[Array, "..."] | None = None
    ) -> Float[Array, "B H T S"]:
        """The weights, float32 or wider.

        Args:
            scores: (B, H, T, S).
            mask: what is allowed, broadcastable to the scores; None allows everything.

        Returns:
            Weights, exactly zero where forbidden. A row with no allowed key is zero throughout.
        """
        numerator, divisor = self.parts(scores, mask)
        return numerator / divisor


def _softmax(scores: Float[Array, "B H T S"], mask: Bool[Array, "..."] | None = None) -> Parts:
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    if mask is None:
        top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
        numerator = jnp.exp(scores - top)
        return numerator, jnp.sum(numerator, axis=-1, keepdims=True)
    scores = jnp.where(mask, scores, FORBIDDEN)
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    # A row with no allowed key has 0 subtracted instead: its numerators are exp(FORBIDDEN) = 0.
    numerator = jnp.exp(scores - jnp.where(top > FORBIDDEN / 2, top, 0.0))
    total = jnp.sum(numerator, axis=-1, keepdims=True)
    return numerator, jnp.where(total > 0, total, 1.0)


softmax = Normalizer("softmax", _softmax)
"""exp(s) / sum exp(s) over the allowed keys (Vaswani et al. 2017, equation 1)."""

NORMALIZERS: dict[str, Normalizer] = {"softmax": softmax}
