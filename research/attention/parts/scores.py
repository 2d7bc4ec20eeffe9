"""Score functions of attention: how well a query and a key match.

A score is a frozen dataclass registered as a pytree. `score(q, k, q_index, kv_index)` is the
reference. `score.as_dot(q, k)` rewrites it as plain dot products where that is possible, because
blockwise and fused implementations need that form. Learned leaves hold a `Parameter` until they are
bound. A new score is one dataclass here and one line in `SCORES`.

Leaves are annotated Any because JAX also fills pytrees with objects that are not arrays.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research.attention.parameters import Constant, Parameter, matrix_axes, matrix_init, vector_axes
from research.attention.parts.choice import MechanismPart, Sizes, size
from research.attention.parts.masks import Index
from research.options import option


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
      reads: the projections it needs, of "query" and "key".
      has_dot_form: whether `as_dot` returns a dot form instead of None.
    """

    reads: ClassVar[tuple[str, ...]] = ("query", "key")
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


class NotDot(Score):
    """The base class of scores that are not a dot product f(q) . g(k)."""

    has_dot_form: ClassVar[bool] = False

    def as_dot(self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]) -> None:
        return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledDot(Score):
    """q . k / sqrt(D)."""

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B S K D"]]:
        return q * q.shape[-1] ** -0.5, k


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cosine(Score):
    """cos(q, k) / temperature."""

    temperature: Any = 0.1  # a number, or an array (H,)

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B S K D"]]:
        scaled = _unit(q) / jnp.asarray(self.temperature)[..., None]
        return scaled.astype(q.dtype), _unit(k).astype(k.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedCosine(Score):
    """cos(q, k) * exp(log_scale)."""

    log_scale: Any  # (H,)

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B S K D"]]:
        scaled = _unit(q) * jnp.exp(self.log_scale)[:, None]
        return scaled.astype(q.dtype), _unit(k).astype(k.dtype)


def _unit(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Additive(NotDot):
    """v . tanh(W q + U k)."""

    query: Any  # W (H, D, A)
    key: Any  # U (K, D, A)
    vector: Any  # v (H, A)

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K E"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        hidden_q = jnp.einsum("bthd,hda->bhta", q, self.query.astype(q.dtype))
        hidden_k = jnp.einsum("bskd,kda->bksa", k, self.key.astype(k.dtype))
        return additive_scores(hidden_q, hidden_k, self.vector)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Concat(NotDot):
    """v . tanh(W [q; k])."""

    weight: Any  # W (H, 2 D, A), the rows of the query first
    vector: Any  # v (H, A)

    def __call__(
        self,
        q: Float[Array, "B T H D"],
        k: Float[Array, "B S K E"],
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        # W [q; k] = W_q q + W_k k, so the T S concatenated pairs are never built.
        of_q, of_k = jnp.split(self.weight.astype(q.dtype), [q.shape[-1]], axis=1)
        hidden_q = jnp.einsum("bthd,hda->bhta", q, of_q)
        hidden_k = jnp.einsum("bshd,hda->bhsa", jnp.repeat(k, q.shape[2] // k.shape[2], 2), of_k)
        return additive_scores(hidden_q, hidden_k, self.vector)


def additive_scores(
    hidden_q: Float[Array, "B H T A"],
    hidden_k: Float[Array, "B K S A"],
    vector: Float[Array, "H A"],
) -> Float[Array, "B H T S"]:
    """Returns v . tanh(hidden_q + hidden_k) for every pair, in float32 or wider.

    Memory is O(B H T S A).
    """
    heads, kv_heads = hidden_q.shape[1], hidden_k.shape[1]
    hidden_k = jnp.repeat(hidden_k, heads // kv_heads, axis=1)
    dtype = jnp.promote_types(hidden_q.dtype, jnp.float32)
    hidden = jnp.tanh(hidden_q[:, :, :, None] + hidden_k[:, :, None, :])
    return jnp.einsum(
        "bhtsa,ha->bhts", hidden, vector.astype(hidden.dtype), preferred_element_type=dtype
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Location(NotDot):
    """(q W)[position of the key]: scores depend on the query alone, not on the keys' content."""

    reads: ClassVar[tuple[str, ...]] = ("query",)
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
class SynthesizerRandom(NotDot):
    """table[position of the query, position of the key], independent of content."""

    reads: ClassVar[tuple[str, ...]] = ()
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


def dot() -> Score:
    """Returns the score q . k (Luong et al. 2015, section 3.1, "dot")."""
    return Score()


def scaled_dot() -> Score:
    """Returns the score q . k / sqrt(D) (Vaswani et al. 2017, equation 1)."""
    return ScaledDot()


def cosine(temperature: float = 0.1) -> Score:
    """Returns cos(q, k) / temperature with a fixed temperature (Liu et al. 2022, Swin V2, eq. 2).

    Raises:
      ValueError: `temperature` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"cosine: temperature = {temperature}; it must be positive")
    return Cosine(temperature)


def learned_cosine(num_heads: int, temperature: float = 0.1) -> Score:
    """Returns cosine scores, a learned temperature per head (Henry et al. 2020; Swin V2, eq. 2).

    The parameter is log(1 / temperature), which keeps the temperature positive; `temperature` is
    its initial value.
    """
    first = Constant(-math.log(temperature))
    return LearnedCosine(Parameter((num_heads,), first, vector_axes("heads")))


def general(num_heads: int, width: int, key_width: int = 0) -> Score:
    """Returns the score q W k, one matrix per head (Luong et al. 2015, section 3.1, "general").

    `key_width` is the keys' D if it differs from the queries'. W is drawn from N(0, 1 / D).
    """
    shape = (num_heads, width, key_width or width)
    return General(
        Parameter(shape, matrix_init(0.0, width), matrix_axes("heads", "head_width", ""))
    )


def additive(num_heads: int, kv_heads: int, width: int, hidden: int, key_width: int = 0) -> Score:
    """Returns v . tanh(W q + U k) with A = `hidden` (Bahdanau et al. 2015, appendix A.1.2)."""
    key_width = key_width or width
    query = Parameter(
        (num_heads, width, hidden), matrix_init(0.0, width), matrix_axes("heads", "", "")
    )
    key = Parameter(
        (kv_heads, key_width, hidden),
        matrix_init(0.0, key_width),
        matrix_axes("kv_heads", "", ""),
    )
    return Additive(query, key, _vector(num_heads, hidden))


def concat(num_heads: int, width: int, hidden: int, key_width: int = 0) -> Score:
    """Returns v . tanh(W [q; k]) with A = `hidden` (Luong et al. 2015, section 3.1, "concat").

    The same function as the additive score, with its two matrices stacked into one.
    """
    total = width + (key_width or width)
    weight = Parameter(
        (num_heads, total, hidden), matrix_init(0.0, width), matrix_axes("heads", "", "")
    )
    return Concat(weight, _vector(num_heads, hidden))


def location(num_heads: int, width: int, length: int) -> Score:
    """Returns (W q)[key's position] for up to `length` keys (Luong et al. 2015, equation 8)."""
    shape = (num_heads, width, length)
    return Location(
        Parameter(shape, matrix_init(0.0, width), matrix_axes("heads", "head_width", ""))
    )


def synthesizer_dense(num_heads: int, width: int, length: int) -> Score:
    """Returns (W relu(q))[key's position] (Tay et al. 2021, Synthesizer, eqs. 1-2, "dense")."""
    shape = (num_heads, width, length)
    return SynthesizerDense(
        Parameter(shape, matrix_init(0.0, width), matrix_axes("heads", "head_width", ""))
    )


def synthesizer_random(num_heads: int, length: int) -> Score:
    """Returns a learned table of scores (Tay et al. 2021, Synthesizer, equation 3, "random")."""
    shape = (num_heads, length, length)
    return SynthesizerRandom(Parameter(shape, matrix_init(1.0, 1), matrix_axes("heads", "", "")))


def _vector(num_heads: int, hidden: int) -> Parameter:
    return Parameter((num_heads, hidden), matrix_init(0.0, hidden), matrix_axes("heads", ""))


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

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return scaled_dot()


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneralScore(MechanismPart):
    """q W k"""

    source = "Luong et al. 2015, section 3.1"

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return general(sizes.num_heads, sizes.head_width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditiveScore(MechanismPart):
    """v . tanh(W q + U k)"""

    source = "Bahdanau et al. 2015, appendix A.1.2"

    score_width: int = size(0, "A, hidden width of the score; 0: that of a head")

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return additive(
            sizes.num_heads,
            sizes.num_kv_heads,
            sizes.head_width,
            self.score_width or sizes.head_width,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConcatScore(MechanismPart):
    """v . tanh(W [q; k])"""

    source = "Luong et al. 2015, section 3.1"

    score_width: int = size(0, "A, hidden width of the score; 0: that of a head")

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return concat(sizes.num_heads, sizes.head_width, self.score_width or sizes.head_width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineScore(MechanismPart):
    """cos(q, k) / temperature, fixed"""

    source = "Liu et al. 2022 (Swin V2), equation 2"

    temperature: float = option(0.1, "of the cosine; the first, where it is learned", above=0)

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return cosine(self.temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedCosineScore(MechanismPart):
    """cos(q, k) / temperature, learned per head"""

    source = "Henry et al. 2020 (QK-norm), section 3"

    temperature: float = option(0.1, "of the cosine; the first, where it is learned", above=0)

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return learned_cosine(sizes.num_heads, self.temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocationScore(MechanismPart):
    """(W q)[position of the key]"""

    source = "Luong et al. 2015, equation 8"

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return location(sizes.num_heads, sizes.head_width, sizes.max_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesizerDenseScore(MechanismPart):
    """(W relu(q))[position of the key]"""

    source = "Tay et al. 2021 (Synthesizer), equations 1-2"
    where = ("self",)

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return synthesizer_dense(sizes.num_heads, sizes.head_width, sizes.max_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesizerRandomScore(MechanismPart):
    """a learned table[position of the query, position of the key]"""

    source = "Tay et al. 2021 (Synthesizer), equation 3"
    where = ("self",)

    def build(self, sizes: Sizes) -> Score:
        """Returns the score for heads of these sizes."""
        return synthesizer_random(sizes.num_heads, sizes.max_length)


SCORES: dict[str, type[MechanismPart]] = {
    "dot": DotScore,
    "scaled_dot": ScaledDotScore,
    "general": GeneralScore,
    "additive": AdditiveScore,
    "concat": ConcatScore,
    "cosine": CosineScore,
    "learned_cosine": LearnedCosineScore,
    "location": LocationScore,
    "synthesizer_dense": SynthesizerDenseScore,
    "synthesizer_random": SynthesizerRandomScore,
}
