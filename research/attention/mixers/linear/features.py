"""Feature maps of linear attention: phi(q) . phi(k) replaces the exponential of a score."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Upper bound of the exponents of key features, so that sums over keys stay finite. Exponents in
# practice are far below it.
CEILING = 60.0


@dataclasses.dataclass(frozen=True)
class FeatureMap:
    """The base class of feature maps for queries and keys with phi(q) . phi(k) >= 0.

    Both maps return the same number of features, in float32 or wider.

    Attributes:
      name: name of the mixer that uses it.
      epsilon: added to a query's sum over keys before dividing by it.
    """

    name: ClassVar[str] = ""
    epsilon: ClassVar[float] = 1e-16

    def num_features(self, width: int) -> int:
        """Returns the number of features F for vectors of this width."""
        raise NotImplementedError

    def queries(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        """Returns the features of queries, up to a positive factor per query.

        The factor cancels in the division by the sum of weights.
        """
        raise NotImplementedError

    def keys(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        """Returns the features of keys."""
        raise NotImplementedError


def _wide(x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@dataclasses.dataclass(frozen=True)
class Elu(FeatureMap):
    """elu(x) + 1 (Katharopoulos et al. 2020, equation 7)."""

    name: ClassVar[str] = "linear"
    epsilon: ClassVar[float] = 1e-6

    def num_features(self, width: int) -> int:
        return width

    def queries(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        return jax.nn.elu(_wide(x)) + 1

    keys = queries


@functools.cache
def orthogonal_gaussians(seed: int, count: int, width: int) -> np.ndarray:
    """Returns rows (count, width), each N(0, I), orthogonal within each group of `width` rows.

    Choromanski et al. 2021, section 2.4 and appendix B.1: directions from a uniformly random
    rotation, norms from independent normal vectors. The same seed draws the same rows.
    """
    draw = np.random.default_rng(seed)
    blocks = []
    for _ in range(-(-count // width)):
        q, r = np.linalg.qr(draw.standard_normal((width, width)))
        # QR alone is not uniform over rotations; fixing the signs of R's diagonal makes it so.
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

    def num_features(self, width: int) -> int:
        return self.features or width

    def queries(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        # Scales each query so that its largest feature is 1, which cancels in the division, as does
        # |x'|^2. Keys need a common scale, and their largest is unknown before the last one.
        exponents = self._products(x)
        return jnp.exp(exponents - lax.stop_gradient(exponents.max(-1, keepdims=True)))

    def keys(self, x: Float[Array, "*b D"]) -> Float[Array, "*b F"]:
        # At most exp(|w|^2 / 2) for any key, because w . x' - |x'|^2 / 2 <= |w|^2 / 2.
        squares = jnp.sum(jnp.square(_wide(x)), -1, keepdims=True) * (0.5 * x.shape[-1] ** -0.5)
        return jnp.exp(jnp.minimum(self._products(x) - squares, CEILING))

    def _products(self, x):
        width = x.shape[-1]
        w = orthogonal_gaussians(self.seed, self.num_features(width), width) * width**-0.25
        x = _wide(x)
        return x @ jnp.asarray(w.T, x.dtype)


@dataclasses.dataclass(frozen=True)
class Taylor(FeatureMap):
    """exp to second order: phi(q) . phi(k) = 1 + s + s^2 / 2, s = q . k / sqrt(D).

    Arora et al. 2024, Based, section 3.1 (from Zhang et al. 2024, Hedgehog, section 5). Each
    unordered pair of distinct channels appears once among the products, times sqrt(2), instead of
    twice, which leaves (D + 1)(D + 2) / 2 features. phi(q) . phi(k) is at least 1/2.
    """

    name: ClassVar[str] = "based"

    def num_features(self, width: int) -> int:
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
