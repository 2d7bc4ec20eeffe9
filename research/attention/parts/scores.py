"""Score functions of attention: how well a query and a key match. Those with a dot-product form.

A score is a frozen dataclass registered as a pytree. `score(q, k, q_index, kv_index)` is the
reference. `score.as_dot(q, k)` rewrites it as plain dot products where that is possible, because
blockwise and fused implementations need that form. Learned leaves hold a `Parameter` until they are
bound. Scores without a dot form are in additive_scores.py, location_scores.py and
relative_scores.py. A new score is one dataclass and one line in the table of its file.

Leaves are annotated Any because JAX also fills pytrees with objects that are not arrays.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.parameters import Constant, Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.masks import Index, static
from research.attention.parts.part_options import MechanismPart, Sizes
from research.options import OptionError, option


def grouped_dot(q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]) -> Float[Array, "B H T S"]:
    """Returns the dot products of each query head with its key head, accumulated in float32.

    Query heads g*H/K .. (g+1)*H/K - 1 share key head g (Ainslie et al. 2023, section 2.2). The
    keys are not repeated in memory.
    """
    (b, t, h, d), (s, kv_heads) = q.shape, k.shape[1:3]
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    if h == kv_heads:
        return jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=dtype)
    q = q.reshape(b, t, kv_heads, h // kv_heads, d)
    scores = jnp.einsum("btkgd,bskd->bkgts", q, k, preferred_element_type=dtype)
    return scores.reshape(b, h, t, s)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Score:
    """The base class of all scores: q . k. A score with a dot form only overrides `as_dot`.

    Attributes:
      required_projections: the projections it needs, of "query" and "key".
      has_dot_form: whether `as_dot` returns a dot form instead of None.
    """

    required_projections: ClassVar[tuple[str, ...]] = ("query", "key")
    has_dot_form: ClassVar[bool] = True

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K D"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        """Returns the score of every pair, in float32 or wider.

        Args:
          q: queries; H is a multiple of K.
          k: keys.
          q_index: absolute query positions, (T, 1).
          kv_index: absolute key positions, (1, S).
        """
        dot_form = self.as_dot(q, k)
        if dot_form is None:
            raise NotImplementedError(f"{type(self).__name__} has neither a dot form nor scores")
        return grouped_dot(*dot_form)

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> tuple[Float[Array, "B T H E"], Float[Array, "B S K E"]] | None:
        """Returns queries and keys whose dot products are this score; None without a dot form."""
        return q, k


class NonDotScore(Score):
    """The base class of scores that are not a dot product f(q) . g(k)."""

    has_dot_form: ClassVar[bool] = False

    def as_dot(self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]) -> None:
        return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledDot(Score):
    """q . k / sqrt(D); or sqrt(base) q . k / D, which is the same at D = base; or factor q . k.

    Queries and keys that are trained are correlated, so that q . k grows as D and not as sqrt(D)
    (Yang et al. 2022, section 4 and definition 4.1).

    Attributes:
      base: width of a head at the base width of muP; 0 for q . k / sqrt(D).
      factor: in place of both, if it is not 0.
    """

    base: float = static(default=0.0)
    factor: float = static(default=0.0)

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B S K D"]]:
        width = q.shape[-1]
        factor = self.factor or (self.base**0.5 / width if self.base else width**-0.5)
        return q * factor, k


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cosine(Score):
    """cos(q, k) / temperature."""

    temperature: Any = 0.1  # a number, or an array (H,)

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B S K D"]]:
        scaled = unit(q) / jnp.asarray(self.temperature)[..., None]
        return scaled.astype(q.dtype), unit(k).astype(k.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedCosine(Score):
    """cos(q, k) * exp(log_scale)."""

    log_scale: Any  # (H,)

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B S K D"]]:
        scaled = unit(q) * jnp.exp(self.log_scale)[:, None]
        return scaled.astype(q.dtype), unit(k).astype(k.dtype)


def unit(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x / |x| in float32 or wider."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # The epsilon keeps the value and the gradient of a zero vector finite.
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class General(Score):
    """q W k."""

    weight: Any  # (H, D, D of the keys)

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K E"]
    ) -> tuple[Float[Array, "B T H E"], Float[Array, "B S K E"]]:
        return jnp.einsum("bthd,hde->bthe", q, self.weight.astype(q.dtype)), k


def dot() -> Score:
    """Returns the score q . k (Luong et al. 2015, section 3.1, "dot")."""
    return Score()


def scaled_dot(base: float = 0.0, factor: float = 0.0) -> Score:
    """Returns the score q . k / sqrt(D) (Vaswani et al. 2017, equation 1); see `ScaledDot`."""
    return ScaledDot(base, factor)


def cosine(temperature: float = 0.1) -> Score:
    """Returns cos(q, k) / temperature with a fixed temperature (Liu et al. 2022, Swin V2, eq. 2).

    Raises:
      ValueError: `temperature` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"cosine: temperature = {temperature}; it must be positive")
    return Cosine(temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DotScore(MechanismPart):
    """q . k"""

    source = "Luong et al. 2015, section 3.1"

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return dot()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledDotScore(MechanismPart):
    """q . k / sqrt(D)"""

    source = "Vaswani et al. 2017, equation 1"

    score_scale: float = option(
        0.0,
        "factor on q . k in place of 1 / sqrt(D), such as (width / num_heads)**-0.5; "
        "0: 1 / sqrt(D)",
        least=0,
    )

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes.

        Raises:
          OptionError: a factor is set, and muP sets one too.
        """
        if self.score_scale and sizes.base_head_width:
            message = "muP (base_width) scales the scores; leave it 0"
            raise OptionError("score_scale", self.score_scale, message)
        return scaled_dot(sizes.base_head_width, self.score_scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneralScore(MechanismPart):
    """q W k"""

    source = "Luong et al. 2015, section 3.1"

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        shape = (sizes.num_heads, sizes.head_width, sizes.head_width)
        init = matrix_init(0.0, sizes.head_width)
        return General(Parameter(shape, init, matrix_axes("heads", "head_width", "", roles="sio")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineScore(MechanismPart):
    """cos(q, k) / temperature, fixed"""

    source = "Liu et al. 2022 (Swin V2), equation 2"

    temperature: float = option(
        0.1, "divides the cosine; the initial value if it is learned", above=0
    )

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return cosine(self.temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedCosineScore(MechanismPart):
    """cos(q, k) / temperature, learned per head"""

    source = "Henry et al. 2020 (QK-norm), section 3"

    temperature: float = option(
        0.1, "divides the cosine; the initial value if it is learned", above=0
    )

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        # The parameter is log(1 / temperature), which keeps the temperature positive.
        initial = Constant(-math.log(self.temperature))
        return LearnedCosine(Parameter((sizes.num_heads,), initial, vector_axes("heads")))


DOT_SCORES: dict[str, type[MechanismPart]] = {
    "dot": DotScore,
    "scaled_dot": ScaledDotScore,
    "general": GeneralScore,
    "cosine": CosineScore,
    "learned_cosine": LearnedCosineScore,
}
