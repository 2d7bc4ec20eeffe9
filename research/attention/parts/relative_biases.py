"""Relative position biases: biases that depend on the distance between query and key.

See biases.py for the interface of a bias. Learned leaves hold a `Parameter` until they are bound.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from research.attention.parameters import (
    Constant,
    Normal,
    Parameter,
    matrix_axes,
    matrix_init,
    vector_axes,
)
from research.attention.parts.biases import Bias, Index, alibi
from research.attention.parts.masks import static
from research.attention.parts.part_options import MechanismPart, Sizes, size_option

# Li et al. 2024, appendix: the width of the network.
FIRE_WIDTH = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class T5(Bias):
    """score + table[bucket of k - q, head]."""

    additive: ClassVar[bool] = True
    table: Any  # a Parameter or an array (num_buckets, H)
    edges: tuple[int, ...] = static()  # the smallest distance of each bucket except the first
    bidirectional: bool = static()

    def __call__(
        self,
        score: Float[Array, "B H T S"],
        head: Index,
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        table = jnp.asarray(self.table, score.dtype)
        return score + table[self.bucket(q_index, kv_index), head]

    def bucket(self, q_index: Index, kv_index: Index) -> Int[Array, "..."]:
        """Returns the row of the table for each pair."""
        ahead = jnp.asarray(kv_index - q_index)
        distance = jnp.abs(ahead) if self.bidirectional else jnp.maximum(-ahead, 0)
        bucket = jnp.searchsorted(jnp.asarray(self.edges), distance, side="right")
        if not self.bidirectional:
            return bucket
        return bucket + (ahead > 0) * (len(self.edges) + 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kerple(Bias):
    """score - r1 * log(1 + r2 * |q - k|), r1 and r2 the softplus of learned numbers."""

    additive: ClassVar[bool] = True
    raw_r1: Any  # one per head: a Parameter or an array (H,)
    raw_r2: Any

    def __call__(
        self,
        score: Float[Array, "B H T S"],
        head: Index,
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        r1, r2 = (
            jax.nn.softplus(jnp.asarray(raw, score.dtype))[head]
            for raw in (self.raw_r1, self.raw_r2)
        )
        return score - r1 * jnp.log1p(r2 * jnp.abs(q_index - kv_index))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fire(Bias):
    """score + f(psi(|q - k|) / psi(max(q, k, L))), psi(x) = log(|c| x + 1), f a small network.

    L = |multiplier| * length. The network has one hidden ReLU layer and no output bias: that would
    add the same constant to all scores of a head, which a softmax ignores.
    """

    additive: ClassVar[bool] = True
    c: Any  # a Parameter or an array ()
    multiplier: Any  # ()
    hidden: Any  # (W,)
    hidden_bias: Any  # (W,)
    out: Any  # (W, H)
    length: float = static()

    def __call__(
        self,
        score: Float[Array, "B H T S"],
        head: Index,
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        dtype = score.dtype
        leaves = (self.c, self.multiplier, self.hidden, self.hidden_bias, self.out)
        c, multiplier, hidden, hidden_bias, out = (jnp.asarray(x, dtype) for x in leaves)
        distance = jnp.abs(q_index - kv_index).astype(dtype)
        latest = jnp.maximum(q_index, kv_index).astype(dtype)
        longest = jnp.maximum(latest, jnp.abs(multiplier) * self.length)
        # The authors' epsilon prevents 0 / 0 if c becomes 0.
        x = jnp.log1p(jnp.abs(c) * distance) / (jnp.log1p(jnp.abs(c) * longest) + 1e-6)
        units = jax.nn.relu(x[..., None] * hidden + hidden_bias)
        bias = jnp.moveaxis(units @ out, -1, 0)
        return score + bias[head[..., 0, 0]]


def bucket_edges(num_buckets: int, max_distance: int) -> tuple[int, ...]:
    """Returns the smallest distance of each bucket except the first.

    Each bucket in the first half holds a single distance. With e such buckets, bucket e + j of the
    other n starts where j <= n * log(distance / e) / log(max_distance / e), that is, where
    distance**n >= max_distance**j * e**(n - j), which integers decide without rounding.
    """
    exact = num_buckets // 2
    n = num_buckets - exact
    edges = list(range(1, exact + 1))
    for j in range(1, n):
        bound = max_distance**j * exact ** (n - j)
        distance = math.ceil(exact * (max_distance / exact) ** (j / n)) - 2
        while distance < 1 or distance**n < bound:
            distance += 1
        edges.append(distance)
    return tuple(edges)


def t5(num_heads: int, num_buckets: int, max_distance: int, bidirectional: bool) -> T5:
    """Returns T5's bias: one learned number per head and logarithmic bucket of distances.

    Source: Raffel et al. 2020, section 2.1; the buckets are those of the authors' code. A
    bidirectional table is split between keys before and after the query; otherwise all keys after
    the query fall into bucket 0. T5 itself does not scale its scores.

    Raises:
      ValueError: there are too few buckets, or `max_distance` lies within the buckets of a single
        distance.
    """
    least = 4 if bidirectional else 2
    if num_buckets < least or (bidirectional and num_buckets % 2):
        message = f"it must be at least {least}" + (" and even" if bidirectional else "")
        raise ValueError(f"t5: num_buckets = {num_buckets}; {message}")
    directed = num_buckets // 2 if bidirectional else num_buckets
    if max_distance <= directed // 2:
        message = f"it must be more than {directed // 2}, the buckets of a single distance"
        raise ValueError(f"t5: max_distance = {max_distance}; {message}")
    table = Parameter((num_buckets, num_heads), Normal(0.02), vector_axes("", "heads"))
    return T5(table, bucket_edges(directed, max_distance), bidirectional)


def kerple(num_heads: int) -> Kerple:
    """Returns the bias -r1 * log(1 + r2 * |q - k|), r1 and r2 learned per head.

    Source: Chi et al. 2022, equation 7, the logarithmic variant. A softplus keeps both positive.
    Initial values are evenly spaced over the heads, r1 in (0, 2) and r2 in (0, 1), the ranges that
    the authors draw from.
    """
    spaced = (np.arange(num_heads) + 0.5) / num_heads

    def raw(positive: np.ndarray) -> Parameter:
        inverse = positive + np.log(-np.expm1(-positive))
        return Parameter((num_heads,), Constant(tuple(inverse.tolist())), vector_axes("heads"))

    return Kerple(raw(2 * spaced), raw(spaced))


def fire(num_heads: int, max_length: int) -> Fire:
    """Returns FIRE: a small network applied to the log-distance relative to the query's position.

    Source: Li et al. 2024 (FIRE), equations 5 and 18. Under a causal mask max(q, k) is q, as in the
    paper; without one, the maximum keeps the ratio at most 1. L starts at a quarter of `max_length`
    (512 of 2048 in the paper) and c at 0.1. Dense attention materializes T * S * 32 numbers for it;
    blockwise attention computes them block by block.
    """
    heads, width = num_heads, FIRE_WIDTH
    return Fire(
        c=Parameter((), Constant(0.1), vector_axes()),
        multiplier=Parameter((), Constant(1.0), vector_axes()),
        hidden=Parameter((width,), Normal(1.0), vector_axes("")),
        hidden_bias=Parameter((width,), Constant(0.0), vector_axes("")),
        out=Parameter((width, heads), matrix_init(0.0, width), matrix_axes("", "heads")),
        length=max(max_length / 4, 1.0),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlibiPosition(MechanismPart):
    """s - slope of the head * |q - k|"""

    source = "Press et al. 2022, section 3"
    where = ("self",)

    def build(self, sizes: Sizes) -> Bias:
        """Returns the bias."""
        return alibi(sizes.num_heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Position(MechanismPart):
    """s + a learned number per head and bucket of q - k"""

    source = "Raffel et al. 2020, section 2.1"
    where = ("self",)

    num_buckets: int = size_option(32, "number of buckets of distances", least=4, most=1024)
    max_distance: int = size_option(
        128, "distance from which all larger ones are treated alike", least=1
    )

    def build(self, sizes: Sizes) -> Bias:
        """Returns the bias."""
        return t5(
            sizes.num_heads,
            self.num_buckets,
            self.max_distance,
            bidirectional=sizes.bidirectional,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerplePosition(MechanismPart):
    """s - r1 log(1 + r2 |q - k|), r1 and r2 learned per head"""

    source = "Chi et al. 2022, equation 7 (logarithmic)"
    where = ("self",)

    def build(self, sizes: Sizes) -> Bias:
        """Returns the bias."""
        return kerple(sizes.num_heads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirePosition(MechanismPart):
    """s + f(log(c |q - k| + 1) / log(c max(q, L) + 1)), a network f; c, L learned"""

    source = "Li et al. 2024, equation 5"
    where = ("self",)
    absolute = True

    def build(self, sizes: Sizes) -> Bias:
        """Returns the bias."""
        return fire(sizes.num_heads, sizes.max_length)


BIAS_POSITIONS: dict[str, type[MechanismPart]] = {
    "alibi": AlibiPosition,
    "t5": T5Position,
    "kerple": KerplePosition,
    "fire": FirePosition,
}
