"""Scores of key positions that ignore the keys' content: location attention and Synthesizers."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.parameters import Parameter, matrix_axes, matrix_init, table_axes
from research.attention.parts.masks import Index
from research.attention.parts.part_options import MechanismPart, Sizes
from research.attention.parts.scores import NonDotScore, Score


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Location(NonDotScore):
    """(q W)[position of the key]: scores depend on the query alone, not on the keys' content."""

    required_projections: ClassVar[tuple[str, ...]] = ("query",)
    weight: Any  # (H, D, longest S)

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K E"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        # Cast before the product: XLA on CPU lacks this bfloat16 x bfloat16 -> float32 product.
        dtype = jnp.promote_types(q.dtype, jnp.float32)
        weight = self.weight.astype(q.dtype).astype(dtype)
        scores = jnp.einsum("bthd,hds->bhts", self.hidden(q).astype(dtype), weight)
        return jnp.take(scores, jnp.ravel(kv_index), axis=-1, mode="clip")

    def hidden(self, q: Float[Array, "B T H D"]) -> Float[Array, "B T H D"]:
        """Transforms the query before it is projected to positions."""
        return q


class SynthesizerDense(Location):
    """(relu(q) W)[position of the key]."""

    def hidden(self, q: Float[Array, "B T H D"]) -> Float[Array, "B T H D"]:
        return jax.nn.relu(q)


jax.tree_util.register_dataclass(SynthesizerDense, data_fields=["weight"], meta_fields=[])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SynthesizerRandom(NonDotScore):
    """table[position of the query, position of the key], independent of content."""

    required_projections: ClassVar[tuple[str, ...]] = ()
    table: Any  # (H, longest T, longest S)

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K E"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        table = self.table.astype(jnp.promote_types(q.dtype, jnp.float32))
        rows = jnp.take(table, jnp.ravel(q_index), axis=1, mode="clip")
        scores = jnp.take(rows, jnp.ravel(kv_index), axis=2, mode="clip")
        return jnp.broadcast_to(scores, (q.shape[0], *scores.shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocationScore(MechanismPart):
    """(W q)[position of the key]"""

    source = "Luong et al. 2015, equation 8"
    absolute = True

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return Location(_position_weights(sizes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesizerDenseScore(MechanismPart):
    """(W relu(q))[position of the key]"""

    source = "Tay et al. 2021 (Synthesizer), equations 1-2"
    where = ("self",)
    absolute = True

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return SynthesizerDense(_position_weights(sizes))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesizerRandomScore(MechanismPart):
    """a learned table[position of the query, position of the key]"""

    source = "Tay et al. 2021 (Synthesizer), equation 3"
    where = ("self",)
    absolute = True

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        shape = (sizes.num_heads, sizes.max_length, sizes.max_length)
        axes = table_axes("heads", "", "", roles="sio")
        return SynthesizerRandom(Parameter(shape, matrix_init(1.0, 1), axes))


def _position_weights(sizes: Sizes) -> Parameter:
    shape = (sizes.num_heads, sizes.head_width, sizes.max_length)
    init = matrix_init(0.0, sizes.head_width)
    return Parameter(shape, init, matrix_axes("heads", "head_width", "", roles="sio"))


LOCATION_SCORES: dict[str, type[MechanismPart]] = {
    "location": LocationScore,
    "synthesizer_dense": SynthesizerDenseScore,
    "synthesizer_random": SynthesizerRandomScore,
}
