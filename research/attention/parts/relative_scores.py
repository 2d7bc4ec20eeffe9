"""Relative position encodings that depend on the query: Shaw and Transformer-XL.

Each adds the product of the query with an embedding of the distance to a score that it wraps. The
wrapped score must have a dot form, whose scaling applies to the added term too. The sum has no dot
form, so only the dense implementation supports it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from research.attention.parameters import (
    Constant,
    Parameter,
    matrix_axes,
    matrix_init,
    table_axes,
    vector_axes,
)
from research.attention.parts.masks import Index, static
from research.attention.parts.part_options import MechanismPart, Sizes, size_option
from research.attention.parts.scores import NonDotScore, Score, grouped_dot

Wrapper = Callable[[Score], Score]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shaw(NonDotScore):
    """q . (k + a[distance]), distances clipped to +-(N - 1) / 2."""

    inner: Score
    table: Any  # a (N, D), shared by the heads; N is odd and the middle row is distance 0

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        q, k = _dot_form(self.inner, q, k)
        farthest = self.table.shape[0] // 2
        distance = jnp.clip(q_index - kv_index, -farthest, farthest) + farthest
        table = self.table.astype(q.dtype)
        dtype = jnp.promote_types(q.dtype, jnp.float32)
        by_distance = jnp.einsum("bthd,nd->bhtn", q, table, preferred_element_type=dtype)
        return grouped_dot(q, k) + _pick(by_distance, distance)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TransformerXL(NonDotScore):
    """(q + u) . k + (q + v) . W r[distance], r sinusoidal."""

    inner: Score
    content: Any  # u (H, D)
    place: Any  # v (H, D)
    weight: Any  # W (R, H, D), R the width of the sinusoids
    length: int = static()  # distances are clipped to less than this in either direction

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        by_content, keys = _dot_form(self.inner, q + self.content.astype(q.dtype), k)
        by_place, _ = _dot_form(self.inner, q + self.place.astype(q.dtype), k)
        distances = np.arange(-self.length + 1, self.length)
        waves = jnp.asarray(_waves(distances, self.weight.shape[0]), q.dtype)
        relative = jnp.einsum("nr,rhd->nhd", waves, self.weight.astype(q.dtype))
        dtype = jnp.promote_types(q.dtype, jnp.float32)
        by_distance = jnp.einsum("bthd,nhd->bhtn", by_place, relative, preferred_element_type=dtype)
        at = jnp.clip(q_index - kv_index + self.length - 1, 0, 2 * self.length - 2)
        return grouped_dot(by_content, keys) + _pick(by_distance, at)


def _dot_form(score: Score, q: Array, k: Array) -> tuple[Array, Array]:
    form = score.as_dot(q, k)
    if form is None:
        raise NotImplementedError(f"a relative position needs a dot product, not {score}")
    return form


def _pick(by_distance: Float[Array, "B H T N"], at: Index) -> Float[Array, "B H T S"]:
    """Returns by_distance[b, h, t, at[t, s]]."""
    at = jnp.broadcast_to(at, (*by_distance.shape[:2], by_distance.shape[2], at.shape[-1]))
    return jnp.take_along_axis(by_distance, at, axis=-1)


def _waves(distances: np.ndarray, width: int) -> np.ndarray:
    """Returns sines in the first half of the channels, cosines in the second (Dai et al. 2019)."""
    angle = distances[:, None] / 10000.0 ** (np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def shaw(max_distance: int, width: int) -> Wrapper:
    """Returns relative positions on keys (Shaw et al. 2018, equations 3 and 5).

    Values get no relative positions (the paper's Table 3).

    Raises:
      ValueError: `max_distance` is less than 1.
    """
    if max_distance < 1:
        raise ValueError(f"shaw: max_distance = {max_distance}; it must be at least 1")
    table = Parameter(
        (2 * max_distance + 1, width), matrix_init(0.0, width), table_axes("", "head_width")
    )
    return lambda inner: Shaw(inner, table)


def transformer_xl(num_heads: int, width: int, length: int, waves: int) -> Wrapper:
    """Returns the relative positions of Transformer-XL, for sequences of up to `length` tokens.

    `waves` is the width R of the sinusoids, even. Source: Dai et al. 2019, section 3.3.
    """
    zeros, heads = Constant(0.0), ("heads", "head_width")
    content, place = (Parameter((num_heads, width), zeros, vector_axes(*heads)) for _ in range(2))
    weight = Parameter((waves, num_heads, width), matrix_init(0.0, waves), matrix_axes("", *heads))
    return lambda inner: TransformerXL(inner, content, place, weight, length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShawPosition(MechanismPart):
    """q . (k + a[clipped distance]), a learned"""

    source = "Shaw et al. 2018, equations 3 and 5"
    where = ("self",)

    max_distance: int = size_option(
        128, "distance from which all larger ones are treated alike", least=1
    )

    def build(self, sizes: Sizes) -> Wrapper:
        """Returns the change of a score."""
        return shaw(min(self.max_distance, sizes.max_length), sizes.head_width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerXLPosition(MechanismPart):
    """(q + u) . k + (q + v) . W r[distance], r sinusoidal"""

    source = "Dai et al. 2019, section 3.3"
    where = ("self",)

    def build(self, sizes: Sizes) -> Wrapper:
        """Returns the change of a score."""
        return transformer_xl(
            sizes.num_heads, sizes.head_width, sizes.max_length, sizes.width + sizes.width % 2
        )


SCORE_POSITIONS: dict[str, type[MechanismPart]] = {
    "shaw": ShawPosition,
    "transformer_xl": TransformerXLPosition,
}
