"""Projections onto the simplex with exact zeros: sparsemax and 1.5-entmax.

Both are p_i = max(z_i - tau, 0)**power, where tau makes them sum to 1; tau is found exactly from
the sorted scores. Only scores within 1 of the largest can have weight, because the largest alone
would exceed 1 otherwise. Lower scores are raised to that bound and excluded: the sums then have no
large terms that cancel, and masked scores may be arbitrarily low.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def sparsemax(scores: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
    """Returns the Euclidean projection of the scores onto the simplex, along the last axis.

    Source: Martins & Astudillo 2016, algorithm 1; derivative: equation 13.
    """
    z = _centred(scores)
    ordered = -jnp.sort(-z, axis=-1)
    # With the k largest in the support, tau is (their sum - 1) / k.
    tau = (jnp.cumsum(ordered, axis=-1) - 1.0) / _counts(z)
    return _above(z, _last(tau, (tau < ordered) & (ordered > -1)))


@sparsemax.defjvp
def _sparsemax_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    p = sparsemax(*primals)
    return p, _tangent((p > 0).astype(p.dtype), *tangents)


@jax.custom_jvp
def entmax15(scores: Float[Array, "*batch S"]) -> Float[Array, "*batch S"]:
    """Returns 1.5-entmax along the last axis, which lies between softmax and sparsemax.

    Source: Peters et al. 2019, section 3 (equation 10) and algorithm 2; derivative: proposition 2.
    """
    z = _centred(scores / 2)
    ordered = -jnp.sort(-z, axis=-1)
    # With the k largest in the support, tau solves sum (z - tau)**2 = 1: in terms of their mean
    # and variance, tau = mean - sqrt(1 / k - variance).
    count = _counts(z)
    mean = jnp.cumsum(ordered, axis=-1) / count
    variance = jnp.cumsum(ordered**2, axis=-1) / count - mean**2
    tau = mean - jnp.sqrt(jnp.maximum(1.0 / count - variance, 0.0))
    return _above(z, _last(tau, (tau <= ordered) & (ordered > -1))) ** 2


@entmax15.defjvp
def _entmax15_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    p = entmax15(*primals)
    # The inner `where` keeps the root's derivative finite at p = 0: the outer one alone would
    # multiply inf by 0, which is NaN. This matters for second derivatives.
    slope = jnp.where(p > 0, jnp.sqrt(jnp.where(p > 0, p, 1.0)), 0.0)
    return p, _tangent(slope, *tangents)


def _tangent(slope: Array, tangent: Array) -> Array:
    """Multiplies a vector by the Jacobian diag(slope) - slope slope^T / sum(slope)."""
    moved = slope * tangent
    share = slope / jnp.sum(slope, axis=-1, keepdims=True)
    return moved - share * jnp.sum(moved, axis=-1, keepdims=True)


def _centred(z: Array) -> Array:
    """Subtracts the largest score, which does not change the result, and clips at -1."""
    return jnp.maximum(z - jnp.max(z, axis=-1, keepdims=True), -1.0)


def _counts(z: Array) -> Array:
    return jnp.arange(1, z.shape[-1] + 1, dtype=z.dtype)


def _last(tau: Array, supported: Array) -> Array:
    """Returns the tau of the largest consistent support; `supported` is a run of True first."""
    size = jnp.sum(supported, axis=-1, keepdims=True)
    return jnp.take_along_axis(tau, size - 1, axis=-1)


def _above(z: Array, tau: Array) -> Array:
    """Returns max(z - tau, 0), with zeros for scores clipped to -1."""
    # Clipped scores are tied at -1, so rounding of tau could give all of them weight. The condition
    # is False for NaN, so NaN scores are passed on.
    return jnp.where(z <= -1.0, 0.0, jnp.maximum(z - tau, 0.0))
