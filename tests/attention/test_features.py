"""Feature maps against what they stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from research.attention.mixers.linear import decay, features
from research.attention.mixers.linear import kernelized as linear
from tests.attention.cases import close
from tests.attention.test_decay import weighted

D = 4


def test_performer_converges_to_softmax_attention():
    draw = np.random.default_rng(2)
    q, k, v = np.float32(draw.standard_normal((3, 1, 10, 2, D)))
    q, k = q / 2, k / 2
    expected = np.zeros(v.shape)
    for t in range(10):
        w = np.exp(np.einsum("bhd,bshd->bsh", q[:, t], k[:, : t + 1]) / np.sqrt(D))
        expected[:, t] = np.einsum("bsh,bshd->bhd", w, v[:, : t + 1]) / w.sum(1)[..., None]

    @functools.partial(jax.jit, static_argnums=0)
    def run(count, q, k, v):
        found = []
        for seed in range(6):
            phi = features.RandomFeatures(seed, count)
            state = (jnp.zeros((1, 2, count, D)), jnp.zeros((1, 2, count)))
            arrays = (phi.queries(q), phi.keys(k), v, state, phi.epsilon)
            found.append(linear.normalized(decay.parallel, *arrays)[1])
        return found

    def error(count):
        return np.sqrt(np.mean([(np.asarray(y) - expected) ** 2 for y in run(count, q, k, v)]))

    errors = [error(count) for count in (16, 256, 4096)]
    # 16 times the features, a quarter of the error.
    assert errors[0] > 2.5 * errors[1] and errors[1] > 3 * errors[2]
    average = np.cumsum(v, 1) / np.arange(1, 11)[:, None, None]
    assert errors[2] < 0.1 * np.sqrt(np.mean((average - expected) ** 2))


def test_random_features_of_huge_vectors_are_finite():
    phi = features.RandomFeatures(0, 512)
    wide = np.asarray(phi._products(jnp.eye(256)))  # w, transposed and scaled
    huge = 256**0.5 * np.stack([wide[:, 0], 100 * wide[:, 1], -1e4 * wide[:, 2]])

    @jax.jit
    def run(x):
        grads = jax.grad(lambda x: weighted(phi.keys(x)) + weighted(phi.queries(x)))(x)
        return phi.keys(x).sum(), phi.queries(x), grads

    for found in run(np.float32(huge)):
        assert np.isfinite(found).all()


def test_random_features_are_orthogonal_gaussians():
    rows = features.orthogonal_gaussians(4, 20, 8)
    for start in (0, 8, 16):
        block = rows[start : start + 8]
        products = block @ block.T
        np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-12)
    assert np.array_equal(rows, features.orthogonal_gaussians(4, 20, 8))
    assert not np.array_equal(rows, features.orthogonal_gaussians(5, 20, 8))
    many = np.stack([features.orthogonal_gaussians(seed, 3, 3) for seed in range(3000)])
    # Mean 0 and covariance 1 of each row, and independent lengths: |w|^2 has variance 2 D.
    np.testing.assert_allclose(many.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(
        np.einsum("nri,nrj->rij", many, many) / 3000, [np.eye(3)] * 3, atol=0.1
    )
    np.testing.assert_allclose((many**2).sum(-1).var(0), 6, atol=0.7)


def test_taylor_features_multiply_to_the_polynomial():
    q, k = jnp.asarray(np.random.default_rng(0).standard_normal((2, 50, 6)), jnp.float32)
    phi = features.Taylor()
    s = (np.float64(q) * np.float64(k)).sum(-1) / np.sqrt(6)
    queries, keys = jax.jit(lambda q, k: (phi.queries(q), phi.keys(k)))(q, k)
    assert keys.shape == (50, phi.num_features(6)) == (50, 28)
    close((np.asarray(queries) * np.asarray(keys)).sum(-1), 1 + s + s**2 / 2, 1e-6)
