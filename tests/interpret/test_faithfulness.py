"""Faithfulness against scipy, models whose answer is known, and all corners of the simplex."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance

from research.interpret.faithfulness import (
    adversarial_weights,
    erasures,
    jensen_shannon,
    permutation_test,
    total_variation,
)
from tests.compiled import compiled

KEY = jax.random.key(0)


def divergence(p, q):
    return scipy.spatial.distance.jensenshannon(p, q) ** 2


def test_distances_are_those_of_scipy():
    p, q = np.random.default_rng(1).dirichlet(np.ones(5), (2, 3)).astype(np.float32)
    p[0], q[0] = [1, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0]
    found, slope = jax.jit(jax.vmap(jax.value_and_grad(jensen_shannon)))(p, q)
    expected = [divergence(x, y) for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert expected[0] == pytest.approx(np.log(2)) and np.isfinite(slope).all()
    assert compiled(jensen_shannon)(p[1], p[1]) == 0
    expected = [np.abs(x - y).sum() / 2 for x, y in zip(p, q, strict=True)]
    np.testing.assert_allclose(compiled(total_variation)(p, q), expected, rtol=1e-5)


def first_weight(w):
    return jnp.array([w[0], 1 - w[0]])


def test_permutations_move_real_positions_evenly():
    """The first weight becomes each of five alike: changes 0, .15, .2, .3, .35, the median .2."""
    weights = np.array([0.4, 0, 0.25, 0.2, 0, 0.1, 0.05], np.float32)
    real = weights > 0

    def f(w):
        # Any weight on padding would show as a change of 1.
        return jnp.where(w[jnp.array([1, 4])].sum() == 0, first_weight(w), jnp.array([0.0, 7.0]))

    test = jax.jit(permutation_test, static_argnums=(0, 3, 5))
    assert test(f, weights, KEY, 2001, real, 1000) == pytest.approx(0.2)
    # With all positions in play the two zeros move as well.
    assert test(f, weights, KEY, 501, None, 1000) > 1


def test_permutations_of_equal_weights_change_nothing():
    weights = np.full(5, 0.2, np.float32)
    assert compiled(permutation_test, 0, 3)(first_weight, weights, KEY, 10) == 0


def adversaries(f, weights, **options):
    options = {"epsilon": 0.01, "steps": 300, "number": 8} | options

    @jax.jit
    def search(weights, key):
        return adversarial_weights(f, weights, key, **options)

    found = search(np.asarray(weights, np.float32), KEY)
    return jax.tree.map(np.asarray, found)


def test_adversaries_of_equal_values_reach_the_furthest_corner():
    """A convex function is largest in a corner of the simplex."""
    weights = np.array([0.05, 0.5, 0.2, 0.15, 0.1])
    found = adversaries(lambda w: jnp.array([0.3, 0.7]) * w.sum(), weights)
    most = max(divergence(corner, weights) for corner in np.eye(5))
    assert found.divergence.max() == pytest.approx(most, rel=0.01)
    np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=1e-5)


def test_adversaries_keep_to_epsilon_and_come_near_the_best_there_is():
    """The output is the weight on the first two: a corner has nearly half on either pair."""
    weights = np.array([0.4, 0.1, 0.4, 0.1, 0.0])
    real = np.arange(5) < 4

    def f(w):
        return jnp.array([w[0] + w[1], w[2] + w[3]])

    found = adversaries(f, weights, real=real, epsilon=0.02)
    assert not found.weights[:, 4].any()
    for w, far, change in zip(*found, strict=True):
        w = w.astype(float)
        assert far == pytest.approx(divergence(w, weights), abs=1e-4)
        assert change == pytest.approx(abs(w[:2].sum() - 0.5), abs=1e-4)
        assert change <= 0.02
    most = 0.0
    for mass, first, second in itertools.product((0.48, 0.52), (0, 1), (2, 3)):
        corner = np.zeros(5)
        corner[first], corner[second] = mass, 1 - mass
        most = max(most, divergence(corner, weights))
    assert 0.97 * most < found.divergence.max() <= most + 1e-4


def test_without_a_way_out_the_adversary_is_the_attention_itself():
    weights = np.array([0.7, 0.2, 0.1])
    found = adversaries(lambda w: w, weights, epsilon=0.0, steps=20, number=2)
    np.testing.assert_allclose(found.weights, np.stack([weights] * 2), rtol=1e-6)
    assert not found.divergence.any() and not found.change.any()


PARTS = np.array([0.05, 0.3, 0.1, 0.2, 0.15, 0.9, 0.0, 0.12, 0.03, 0.05, 0.5], np.float32)
REAL = np.array([True] * 5 + [False] + [True] * 4 + [False])


def test_removing_and_keeping_follow_the_ranking():
    """Nine real tokens, and two of padding that rank high and are never there."""
    ranked = sorted(np.flatnonzero(REAL), key=lambda i: -PARTS[i])
    fractions = (0.0, 0.1, 0.3, 0.5, 1.0)
    counts = [0, 1, 3, 5, 9]
    removed, kept = jax.jit(erasures, static_argnums=2)(PARTS, REAL, fractions)
    for count, without, alone in zip(counts, removed, kept, strict=True):
        assert set(np.flatnonzero(alone)) == set(ranked[:count])
        assert set(np.flatnonzero(without)) == set(ranked[count:])


def test_fractions_are_whole_tokens():
    """A tenth of ten tokens is one, a little of a token is one; the first of equals is taken."""
    removed, kept = compiled(erasures, 1, 2)(np.ones(10, np.float32), None, (0.01, 0.1, 0.11, 0.3))
    np.testing.assert_array_equal(kept.sum(-1), [1, 1, 2, 3])
    np.testing.assert_array_equal(kept, np.arange(10) < kept.sum(-1, keepdims=True))
    np.testing.assert_array_equal(removed, ~kept)
