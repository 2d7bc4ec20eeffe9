"""Scores: how well a query and a key match.

A score is a frozen dataclass registered as a pytree. ``score(q, k)`` is the reference, and
``score.as_dot(q, k)`` rewrites it as plain dot products where that is possible, which is what
blockwise and fused implementations need. A new score is one dataclass here and one line in the
registry.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def grouped_dot(q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]) -> Float[Array, "B H T S"]:
    """Dot products of every query head with the key head it shares, accumulated in float32.

    Query heads g*H/K .. (g+1)*H/K - 1 read key head g (Ainslie et al. 2023, section 2.2). The
    keys are not repeated.
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
    """The base of all scores; one with a dot form only has to define ``as_dot``."""

    def __call__(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> Float[Array, "B H T S"]:
        """The score of every pair, in float32 or wider. H is a multiple of K."""
        dot_form = self.as_dot(q, k)
        if dot_form is None:
            raise NotImplementedError(f"{type(self).__name__} has neither a dot form nor scores")
        return grouped_dot(*dot_form)

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> tuple[Float[Array, "B T H E"], Float[Array, "B S K E"]] | None:
        """Queries and keys whose plain dot products are this score; None if there are none."""
        return q, k


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

    temperature: Any = 0.1  # a number or an array (); JAX also fills pytrees with other things

    def as_dot(
        self, q: Float[Array, "B T H D"], k: Float[Array, "B S K D"]
    ) -> tuple[Float[Array, "B T H D"], Float[Array, "B S K D"]]:
        scaled = _unit(q) / self.temperature
        return scaled.astype(q.dtype), _unit(k).astype(k.dtype)


def _unit(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x / |x| in float32. The epsilon keeps the gradient of a zero vector finite."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def dot() -> Score:
    """q . k (Luong et al. 2015, section 3.1, "dot")."""
    return Score()


def scaled_dot() -> Score:
    """q . k / sqrt(D) (Vaswani et al. 2017, equation 1)."""
    return ScaledDot()


def cosine(temperature: float = 0.1) -> Score:
    """cos(q, k) / temperature, the temperature fixed (Liu et al. 2022, Swin V2, equation 2).

    Raises:
        ValueError: ``temperature`` is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"cosine: temperature = {temperature}; it must be positive")
    return Cosine(temperature)
