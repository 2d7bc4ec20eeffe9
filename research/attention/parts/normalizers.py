"""Normalizers, which map scores to attention weights.

A normalizer returns a numerator and a divisor, weights = numerator / divisor, so that an
implementation can divide after the product with the values, when a row has D numbers instead of S.
It is a frozen dataclass registered as a pytree; a learned leaf holds a `Parameter` until it is
bound to an array. A new normalizer is one dataclass here and one line in `NORMALIZERS`.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from research.attention.parameters import Constant, Parameter, vector_axes
from research.attention.parts.masks import static
from research.attention.parts.part_options import MechanismPart, Sizes
from research.attention.parts.sparsemax import entmax15, sparsemax
from research.options import option

# The score of forbidden keys. It is finite because -inf would give inf - inf = NaN in rows without
# an allowed key, in the forward or the backward pass.
FORBIDDEN = -1e30

Scores = Float[Array, "B H T S"]
Allowed = Bool[Array, "..."]
Parts = tuple[Float[Array, "B H T S"], Float[Array, "B H T 1"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Normalizer:
    """The base class of all normalizers.

    Attributes:
      name: its name in configs and messages.
      extra_logit: for normalizers that divide by a sum of exponentials, a logit whose exponential
        is added to it: a number or one per head, (H,); None for no such logit.
      elementwise: whether each weight is a function of its own score alone, with a divisor of 1;
        then every implementation that goes through blocks of keys computes it.
    """

    name: ClassVar[str] = ""
    elementwise: ClassVar[bool] = False

    @property
    def extra_logit(self) -> Any:
        return None

    def numerator_and_divisor(self, scores: Scores, mask: Allowed | None = None) -> Parts:
        """Returns numerator and divisor of the weights; the divisor is never zero."""
        raise NotImplementedError

    def __call__(self, scores: Scores, mask: Allowed | None = None) -> Scores:
        """Returns the weights, float32 or wider.

        Args:
          scores: (B, H, T, S).
          mask: the allowed pairs, broadcastable to the scores; None allows all.

        Returns:
          Weights, exactly zero where forbidden. A row with no allowed key is zero throughout.
        """
        numerator, divisor = self.numerator_and_divisor(scores, mask)
        return numerator / divisor


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Softmax(Normalizer):
    """exp(sharpening * s) / sum exp(sharpening * s) over the allowed keys.

    Sources: Vaswani et al. 2017, equation 1; sharpening: Chorowski et al. 2015, section 2.3.
    """

    sharpening: float = static(default=1.0)

    name: ClassVar[str] = "softmax"

    def numerator_and_divisor(self, scores: Scores, mask: Allowed | None = None) -> Parts:
        scores = _wide(scores)
        if self.sharpening != 1.0:
            scores = scores * self.sharpening
        if self.extra_logit is None:
            return _softmax(scores, mask)
        extra = jnp.asarray(self.extra_logit, scores.dtype)
        return _softmax(scores, mask, extra[:, None, None] if extra.ndim else extra)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftmaxPlusOne(Softmax):
    """exp(s) / (1 + sum exp(s)): a head can attend to nothing (Miller 2023, "softmax1")."""

    name: ClassVar[str] = "softmax_plus_one"

    @property
    def extra_logit(self) -> Any:
        return 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SinkSoftmax(Softmax):
    """exp(s) / (exp(sink) + sum exp(s)), the sink learned for each head.

    Source: OpenAI 2025, gpt-oss model card, section 2.2 ("a learned bias in the denominator").
    """

    sink: Any = 0.0  # one per head: a Parameter or an array (H,)

    name: ClassVar[str] = "softmax_sink"

    @property
    def extra_logit(self) -> Any:
        return self.sink


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Smoothed(Normalizer):
    """sigma(s) / sum sigma(s) over the allowed keys (Chorowski et al. 2015, section 2.3).

    Computed as the softmax of log sigma(s), so that the sum cannot underflow.
    """

    name: ClassVar[str] = "smoothed"

    def numerator_and_divisor(self, scores: Scores, mask: Allowed | None = None) -> Parts:
        return _softmax(jax.nn.log_sigmoid(_wide(scores)), mask)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sigmoid(Normalizer):
    """sigma(s + b) for each key independently, b learned per head.

    Source: Ramapuram et al. 2024, equation 3 and section 5 (b starts at -log n).
    """

    bias: Any  # one per head: a Parameter or an array (H,)

    name: ClassVar[str] = "sigmoid"
    elementwise: ClassVar[bool] = True

    def numerator_and_divisor(self, scores: Scores, mask: Allowed | None = None) -> Parts:
        scores = _forbid(_wide(scores), mask)
        bias = jnp.asarray(self.bias, scores.dtype)[:, None, None]
        return _undivided(jax.nn.sigmoid(scores + bias), mask)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SquaredRelu(Normalizer):
    """max(s, 0)**2 / length for each key independently.

    Source: Wortsman et al. 2023, section 3, h = squared relu and alpha = 1. Their L is the length
    of the sequence; here it is a constant, so that decoding computes the same as training.
    """

    length: int = static()

    name: ClassVar[str] = "squared_relu"
    elementwise: ClassVar[bool] = True

    def numerator_and_divisor(self, scores: Scores, mask: Allowed | None = None) -> Parts:
        return _undivided(jax.nn.relu(_forbid(_wide(scores), mask)) ** 2 / self.length, mask)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Softpick(Normalizer):
    """max(exp(s) - 1, 0) / (sum |exp(s) - 1| + epsilon) over the allowed keys.

    Negative scores get no weight and still enter the divisor, so a head can attend to nothing.
    Source: Zuhri et al. 2025, section 3, with their epsilon of 1e-6.
    """

    name: ClassVar[str] = "softpick"
    epsilon: ClassVar[float] = 1e-6

    @property
    def extra_logit(self) -> float:
        return math.log(self.epsilon)

    def numerator_and_divisor(self, scores: Scores, mask: Allowed | None = None) -> Parts:
        scores = _wide(scores)
        # A score of 0 adds to neither numerator nor divisor, and gets no gradient.
        scores = scores if mask is None else jnp.where(mask, scores, 0.0)
        # Without a positive score all weights are 0, and exp(-top) could overflow.
        top = jax.lax.stop_gradient(jax.nn.relu(jnp.max(scores, axis=-1, keepdims=True)))
        numerator, summands = self.numerator_and_summands(scores, top)
        total = jnp.sum(summands, axis=-1, keepdims=True)
        return numerator, total + jnp.exp(self.extra_logit - top)

    def numerator_and_summands(self, scores: Array, shift: Array) -> tuple[Array, Array]:
        """Returns max(exp(s) - 1, 0) and |exp(s) - 1|, both divided by exp(shift)."""
        # |exp(s) - 1| = (1 - exp(-|s|)) exp(max(s, 0)), which neither overflows nor cancels.
        summands = -jnp.expm1(-jnp.abs(scores)) * jnp.exp(jax.nn.relu(scores) - shift)
        return jnp.where(scores > 0, summands, 0.0), summands


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sparsemax(Normalizer):
    """Euclidean projection onto the simplex (Martins & Astudillo 2016, equation 2)."""

    name: ClassVar[str] = "sparsemax"

    def numerator_and_divisor(self, scores: Scores, mask: Allowed | None = None) -> Parts:
        return _undivided(sparsemax(_forbid(_wide(scores), mask)), mask)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entmax15(Normalizer):
    """1.5-entmax, between softmax and sparsemax (Peters et al. 2019, section 3)."""

    name: ClassVar[str] = "entmax15"

    def numerator_and_divisor(self, scores: Scores, mask: Allowed | None = None) -> Parts:
        return _undivided(entmax15(_forbid(_wide(scores), mask)), mask)


def _wide(scores: Scores) -> Scores:
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


def _forbid(scores: Scores, mask: Allowed | None) -> Scores:
    return scores if mask is None else jnp.where(mask, scores, FORBIDDEN)


def _undivided(weights: Scores, mask: Allowed | None) -> Parts:
    # Zeroed explicitly, because projections give rows without an allowed key uniform weights.
    weights = weights if mask is None else jnp.where(mask, weights, 0.0)
    return weights, jnp.ones((*weights.shape[:-1], 1), weights.dtype)


def _softmax(scores: Scores, mask: Allowed | None, extra: Array | None = None) -> Parts:
    """Returns numerator and divisor of a softmax; `extra`, () or (H, 1, 1), is an extra logit."""
    scores = _forbid(scores, mask)
    top = jnp.max(scores, axis=-1, keepdims=True)
    if extra is not None:
        top = jnp.maximum(top, extra)
    elif mask is not None:
        # Rows without an allowed key subtract 0, so that their numerators are exp(FORBIDDEN) = 0
        # instead of exp(0) = 1.
        top = jnp.where(top > FORBIDDEN / 2, top, 0.0)
    # A softmax does not depend on the shift, so the gradient through the maximum is exactly zero.
    top = jax.lax.stop_gradient(top)
    numerator = jnp.exp(scores - top)
    total = jnp.sum(numerator, axis=-1, keepdims=True)
    if extra is not None:
        return numerator, total + jnp.exp(extra - top)
    return numerator, total if mask is None else jnp.where(total > 0, total, 1.0)


softmax = Softmax()
"""exp(s) / sum exp(s) over the allowed keys (Vaswani et al. 2017, equation 1)."""


def _per_head(num_heads: int, value: float) -> Parameter:
    return Parameter((num_heads,), Constant(value), vector_axes("heads"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxChoice(MechanismPart):
    """exp(sharpening * s) / sum exp(sharpening * s)"""

    source = "Vaswani et al. 2017, equation 1; sharpening: Chorowski et al. 2015, section 2.3"

    sharpening: float = option(1.0, "multiplies the scores before the softmax", above=0)

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes."""
        return Softmax(self.sharpening)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxPlusOneChoice(MechanismPart):
    """exp(s) / (1 + sum exp(s))"""

    source = "Miller 2023, Attention Is Off By One"

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes."""
        return SoftmaxPlusOne()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinkSoftmaxChoice(MechanismPart):
    """exp(s) / (exp(sink) + sum exp(s)), a learned sink per head"""

    source = "OpenAI 2025, gpt-oss model card, section 2.2"

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes."""
        return SinkSoftmax(sink=_per_head(sizes.num_heads, 0.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothedChoice(MechanismPart):
    """sigma(s) / sum sigma(s)"""

    source = "Chorowski et al. 2015, section 2.3 (smoothing)"

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes."""
        return Smoothed()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidChoice(MechanismPart):
    """sigma(s + b), a learned b per head, initially -log(max_length); not normalized"""

    source = "Ramapuram et al. 2024, equation 3"

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes."""
        return Sigmoid(_per_head(sizes.num_heads, -math.log(sizes.max_length)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquaredReluChoice(MechanismPart):
    """max(s, 0)^2 / max_length; not normalized"""

    source = "Wortsman et al. 2023, section 3 (h = squared relu, alpha = 1)"

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes."""
        return SquaredRelu(sizes.max_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftpickChoice(MechanismPart):
    """max(exp(s) - 1, 0) / (sum |exp(s) - 1| + 1e-6)"""

    source = "Zuhri et al. 2025 (Softpick), section 3"

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes."""
        return Softpick()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsemaxChoice(MechanismPart):
    """the Euclidean projection of s onto the simplex"""

    source = "Martins & Astudillo 2016, equation 2 and algorithm 1"

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes."""
        return Sparsemax()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entmax15Choice(MechanismPart):
    """max(s/2 - tau, 0)^2 with the tau at which it sums to 1"""

    source = "Peters et al. 2019, section 3 (alpha = 1.5)"

    def build(self, sizes: Sizes) -> Normalizer:
        """Returns the normalizer for heads of these sizes."""
        return Entmax15()


NORMALIZERS: dict[str, type[MechanismPart]] = {
    "softmax": SoftmaxChoice,
    "softmax_plus_one": SoftmaxPlusOneChoice,
    "softmax_sink": SinkSoftmaxChoice,
    "smoothed": SmoothedChoice,
    "sigmoid": SigmoidChoice,
    "squared_relu": SquaredReluChoice,
    "softpick": SoftpickChoice,
    "sparsemax": SparsemaxChoice,
    "entmax15": Entmax15Choice,
}
