"""Sparsemax and 1.5-entmax: their optimality, their derivatives, and the authors' package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from research.attention.parts.sparsemax import entmax15, sparsemax
from tests.parity import compare, of

BOTH = {"sparsemax": sparsemax, "entmax15": entmax15}
COMPILED = {name: jax.jit(f) for name, f in BOTH.items()}
score = st.floats(-3, 3, width=32)
# A few sizes only: each is compiled.
rows = st.sampled_from([1, 2, 5, 12]).flatmap(
    lambda n: st.lists(score, min_size=n, max_size=n).map(np.array)
)


def tau_of(p, z, name):
    """The threshold that each weight in the support implies."""
    scaled, root = (z, p) if name == "sparsemax" else (z / 2, np.sqrt(p))
    return scaled, (scaled - root)[p > 0]


@pytest.mark.parametrize("name", BOTH)
@settings(deadline=None, max_examples=100)
@given(rows)
def test_optimality(name, z):
    """One threshold: what has weight is above it by the root of the weight, what has none below."""
    with jax.enable_x64(True):
        p = np.asarray(COMPILED[name](jnp.asarray(z)))
    assert p.sum() == pytest.approx(1, abs=1e-9)
    assert (p >= 0).all()
    scaled, implied = tau_of(p, z, name)
    np.testing.assert_allclose(implied, implied.mean(), atol=1e-7)
    assert (scaled[p == 0] <= implied.mean() + 1e-7).all()


def test_sparsemax_is_a_projection():
    """By a general solver of the quadratic program."""
    z = np.random.default_rng(0).normal(size=(4, 6))
    for row in z:
        found = optimize.minimize(
            lambda p, row=row: ((p - row) ** 2).sum(),
            np.full(6, 1 / 6),
            bounds=[(0, 1)] * 6,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(sparsemax(jnp.asarray(row, jnp.float32)), found.x, atol=1e-5)


def test_entmax15_maximizes_its_objective():
    """p . z + the Tsallis entropy of order 1.5 (Peters et al. 2019, equations 9 and 10)."""
    z = np.random.default_rng(1).normal(size=(4, 5))

    def objective(p, row):
        return p @ row + ((p - np.maximum(p, 0) ** 1.5) / (1.5 * 0.5)).sum()

    for row in z:
        found = optimize.minimize(
            lambda p, row=row: -objective(p, row),
            np.full(5, 1 / 5),
            bounds=[(0, 1)] * 5,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(entmax15(jnp.asarray(row, jnp.float32)), found.x, atol=1e-4)


@pytest.mark.parametrize("name", BOTH)
def test_derivatives_are_finite_differences(name):
    with jax.enable_x64(True):
        z = jnp.asarray(np.random.default_rng(2).normal(size=6))
        jacobian = jax.jit(jax.jacrev(BOTH[name]))(z)
        np.testing.assert_allclose(jax.jit(jax.jacfwd(BOTH[name]))(z), jacobian, atol=1e-12)
        steps = 1e-6 * np.eye(6)
        slopes = (COMPILED[name](z + steps) - COMPILED[name](z - steps)) / 2e-6
        np.testing.assert_allclose(jacobian.T, slopes, atol=1e-7)
        # Second derivatives too: they are those of a function with kinks, but finite.
        second = jax.jit(jax.jacfwd(jax.jacrev(BOTH[name])))(z)
        assert np.isfinite(second).all()
        assert np.abs(second).max() > 0 if name == "entmax15" else not np.asarray(second).any()


@pytest.mark.parametrize("name", BOTH)
def test_long_rows_in_float32(name):
    """The threshold is right to a few roundings, and what is out of the support has no weight."""
    z = np.random.default_rng(3).normal(size=(2, 4096)) * 3
    z[1, 7] = 40.0
    with jax.enable_x64(True):
        exact = np.asarray(COMPILED[name](jnp.asarray(z)))
    found = np.asarray(COMPILED[name](jnp.asarray(z, jnp.float32)))
    np.testing.assert_allclose(found, exact, atol=2e-6)
    assert np.array_equal(found[1], np.eye(4096)[7])
    # Equal scores share.
    np.testing.assert_allclose(COMPILED[name](jnp.full((3, 512), -7.0)), 1 / 512, rtol=1e-5)
    assert np.isnan(COMPILED[name](jnp.asarray([0.0, jnp.nan, 1.0]))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("size", [0.3, 2.0, 20.0])
def test_entmax_package(name, size):
    entmax = pytest.importorskip("entmax")
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(4)
    z, turn = size * generator.normal(size=(2, 50, 33)), generator.normal(size=(2, 50, 33))
    theirs = torch.tensor(z).requires_grad_()
    p = getattr(entmax, name)(theirs, dim=-1)
    (p * torch.tensor(turn)).sum().backward()
    with jax.enable_x64(True):
        ours, pull = jax.vjp(COMPILED[name], jnp.asarray(z))
        (grad,) = pull(jnp.asarray(turn))
    row = f"normalizer={name}", of(entmax, name)
    compare(*row, outputs=(ours, p), tolerance=1e-10)
    compare(*row, gradients={"scores": (grad, theirs.grad)}, tolerance=1e-9)
