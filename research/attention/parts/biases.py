"""Biases: functions that modify scores, given the head and the positions of query and key.

A bias is a frozen dataclass registered as a pytree, called as `bias(score, head, q_index,
kv_index) -> score` on any block of scores. Float leaves are parameters: every implementation
returns their gradients. A new bias is one dataclass and one line in the registry; biases that
encode positions are in relative_biases.py.

Leaves are annotated Any because JAX also fills pytrees with objects that are not arrays.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from research.attention.parts.masks import Mask

Index = Integer[Array | np.ndarray, "..."]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bias:
    """The base class of all biases; an instance of it leaves scores unchanged.

    Attributes:
      additive: whether it adds a term that does not depend on the score.
    """

    additive: ClassVar[bool] = False

    def __call__(
        self,
        score: Float[Array, "B H T S"],
        head: Index,
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        """Returns the new scores.

        Args:
          score: a block of scores, (B, H, T, S), float32 or wider.
          head: the index of each query head, (H, 1, 1).
          q_index: absolute query positions, (T, 1).
          kv_index: absolute key positions, (1, S).
        """
        return score


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowBias(Bias):
    """The base class of biases of whole rows: every score depends on the others that are allowed.

    They have no form in blocks, so only the dense implementation supports them.
    """

    def of_rows(
        self,
        score: Float[Array, "B H T S"],
        q_index: Index,
        kv_index: Index,
        mask: Mask,
    ) -> Float[Array, "B H T S"]:
        """Returns the new scores of whole rows; those that the mask forbids mean nothing.

        Args:
          score: the scores of the queries on all keys, float32 or wider.
          q_index: absolute query positions, (T, 1).
          kv_index: absolute key positions, (1, S).
          mask: the pairs that are allowed.
        """
        raise NotImplementedError

    def stored_after(
        self, score: Float[Array, "B H T S"], q_index: Index, kv_index: Index, mask: Mask
    ) -> Float[Array, "B S ..."] | None:
        """Returns what to store per key once these queries have read the keys.

        None if what is stored does not change. Arguments are those of `of_rows`.
        """
        return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Alibi(Bias):
    """score - slope of the head * |q - k|."""

    additive: ClassVar[bool] = True
    slopes: Any  # one per head: a tuple of numbers or an array (H,)

    def __call__(
        self,
        score: Float[Array, "B H T S"],
        head: Index,
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        slopes = jnp.asarray(self.slopes, score.dtype)[head]
        return score - slopes * jnp.abs(q_index - kv_index)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Softcap(Bias):
    """cap * tanh(score / cap)."""

    cap: Any  # a number or an array ()

    def __call__(
        self,
        score: Float[Array, "B H T S"],
        head: Index,
        q_index: Index,
        kv_index: Index,
    ) -> Float[Array, "B H T S"]:
        return self.cap * jnp.tanh(score / self.cap)


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """Returns the slopes of Press et al. 2022, section 3.

    For n = 2**m heads they are 2**(-8/n), 2**(-16/n) ... 2**-8. For other counts, as in the
    authors' code: the slopes for the next lower power of two, then every second slope for the next
    higher one.
    """
    below = 2 ** math.floor(math.log2(num_heads))

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    return tuple(geometric(below) + geometric(2 * below)[0::2][: num_heads - below])


def alibi(num_heads: int) -> Bias:
    """Returns attention with linear biases, ALiBi (Press et al. 2022, section 3).

    The distance is |q - k|, which is the paper's penalty under a causal mask and its usual
    symmetric extension under a bidirectional one.

    Raises:
      ValueError: `num_heads` is less than 1.
    """
    if num_heads < 1:
        raise ValueError(f"alibi: num_heads = {num_heads}; it must be at least 1")
    return Alibi(alibi_slopes(num_heads))


def softcap(cap: float) -> Bias:
    """Returns cap * tanh(score / cap) (Gemma Team 2024, Gemma 2, section 2, "logit soft-capping").

    Raises:
      ValueError: `cap` is not positive.
    """
    if cap <= 0:
        raise ValueError(f"softcap: cap = {cap}; it must be positive")
    return Softcap(cap)
