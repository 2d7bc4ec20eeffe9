"""Talking heads: mixes the scores, and then the weights, over all heads.

Both mixtures are ordinary parts: the first wraps the score, the second the normalizer. Only the
dense implementation supports them.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.attention.parameters import Parameter, matrix_axes
from research.attention.parts.masks import Index
from research.attention.parts.normalizers import Normalizer, Parts
from research.attention.parts.scores import NonDotScore, Score


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TalkingScores(NonDotScore):
    """The scores of head h are sum_g scores of head g * weight[g, h]."""

    inner: Score
    weight: Any  # (H, H)

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        scores = self.inner(q, k, q_index, kv_index)
        return jnp.einsum("bgts,gh->bhts", scores, self.weight.astype(scores.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TalkingWeights(Normalizer):
    """The weights of head h are sum_g weights of head g * weight[g, h]."""

    name: ClassVar[str] = "talking heads"
    inner: Normalizer
    weight: Any  # (H, H)

    def numerator_and_divisor(
        self, scores: Float[Array, "B H T S"], mask: Bool[Array, "..."] | None = None
    ) -> Parts:
        weights = self.inner(scores, mask)
        mixed = jnp.einsum("bgts,gh->bhts", weights, self.weight.astype(weights.dtype))
        return mixed, jnp.ones_like(mixed[..., :1])


def _near_identity(key: Array, shape: tuple[int, ...], dtype: Any = "float32") -> Array:
    """Draws the identity plus small noise, so that heads start almost unmixed."""
    noise = jax.random.normal(key, shape, dtype) * 0.1 * shape[0] ** -0.5
    return jnp.eye(shape[0], dtype=dtype) + noise


def talking_heads(score: Score, normalizer: Normalizer, num_heads: int) -> tuple[Score, Normalizer]:
    """Wraps a score and a normalizer to mix heads before and after the normalizer.

    Biases and masks are applied between the two. Source: Shazeer et al. 2020, section 3.
    """
    weight = Parameter((num_heads, num_heads), _near_identity, matrix_axes("", "heads"))
    return TalkingScores(score, weight), TalkingWeights(normalizer, weight)
