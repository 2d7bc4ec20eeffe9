"""Feature maps: phi(q) . phi(k) stands for the similarity of a query and a key."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Exponents of key features stop here, far above any that occur; sums over keys stay finite.
CEILING = 60.0


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """A pair of functions of vectors, both to the same number of features, that are never negative
    together: phi(q) . phi(k) >= 0. They compute in float32 or wider.

    Attributes:
      name: of the mixer that uses it.
      epsilon: is added to a query's sum over keys before dividing by it.
    """

    name: ClassVar[str] = ""
    epsilon: ClassVar[float] = 1e-16

    def count(self, width: int) -> int:
        """The number of features of vectors of this width."""
        raise NotImplementedError

    def queries(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        """The features of queries, each times any positive number, which division takes out."""
        raise NotImplementedError

    def keys(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        """The features of keys."""
        raise NotImplementedError


def _wide(x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Elu(FeatureMap):
    """elu(x) + 1 (Katharopoulos et al. 2020, equation 7)."""

    name: ClassVar[str] = "linear"
    epsilon: ClassVar[float] = 1e-6

    def count(self, width: int) -> int:
        return width

    def queries(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        return jax.nn.elu(_wide(x)) + 1

    keys = queries


@functools.cache
def orthogonal_gaussians(seed: int, count: int, width: int) -> np.ndarray:
    """Rows (count, width), each N(0, I), orthogonal within each run of `width` of them.

    Choromanski et al. 2021, section 2.4 and appendix B.1: directions of a uniformly random
    rotation, lengths of independent normal vectors. The same seed draws the same rows.
    """
    draw = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-count // width)):
        q, r = np.linalg.qr(draw.standard_normal((width, width)))
        # Without the signs the rotation would not be uniform.
        blocks.append((q * np.sign(np.diag(r))).T)
    rows = np.concatenate(blocks)[:count]
    rows *= np.linalg.norm(draw.standard_normal((count, width)), axis=1, keepdims=True)
    rows.flags.writeable = False
    return rows


@dataclasses.dataclass(frozen=True)
class RandomFeatures(FeatureMap):
    """FAVOR+: positive orthogonal random features (Choromanski et al. 2021, equation 5, lemma 1).

    phi(x)_i = exp(w_i . x' - |x'|^2 / 2), x' = x / D^(1/4), so that the expectation over w of
    phi(q) . phi(k) is proportional to exp(q . k / sqrt(D)). Nothing is learned; every head and
    layer with the same seed has the same w.

    Attributes:
      seed: draws w.
      features: F, the number of w; 0 is D.
    """

    name: ClassVar[str] = "performer"
    seed: int = 0
    features: int = 0

    def count(self, width: int) -> int:
        return self.features or width

    def queries(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        # The largest feature of a query becomes 1. That takes |x'|^2 out too. Keys cannot have the
        # same: their largest is not known before the last of them.
        exponents = self._products(x)
        return jnp.exp(exponents - lax.stop_gradient(exponents.max(-1, keepdims=True)))

    def keys(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        # At most exp(|w|^2 / 2), whatever the key.
        squares = jnp.sum(jnp.square(_wide(x)), -1, keepdims=True) * (0.5 * x.shape[-1] ** -0.5)
        return jnp.exp(jnp.minimum(self._products(x) - squares, CEILING))

    def _products(self, x):
        width = x.shape[-1]
        w = orthogonal_gaussians(self.seed, self.count(width), width) * width**-0.25
        x = _wide(x)
        return x @ jnp.asarray(w.T, x.dtype)


@dataclasses.dataclass(frozen=True)
class Taylor(FeatureMap):
    """exp to second order: phi(q) . phi(k) = 1 + s + s^2 / 2, s = q . k / sqrt(D).

    Arora et al. 2024, Based, section 3.1 (from Zhang et al. 2024, Hedgehog, section 5). Of the D^2
    products of two channels each unordered pair is kept once, times sqrt(2): (D + 1)(D + 2) / 2
    features. The sum is at least 1/2.
    """

    name: ClassVar[str] = "based"

    def count(self, width: int) -> int:
        return (width + 1) * (width + 2) // 2

    def queries(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        width = x.shape[-1]
        x = _wide(x) * width**-0.25
        weights = np.full((width, width), 1.0) - np.eye(width) * (1 - 0.5**0.5)
        pairs = [
            x[..., i : i + 1] * x[..., i:] * weights[i, i:].astype(x.dtype) for i in range(width)
        ]
        return jnp.concatenate([jnp.ones_like(x[..., :1]), x, *pairs], axis=-1)

    keys = queries
