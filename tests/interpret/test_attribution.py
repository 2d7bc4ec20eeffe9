"""Attributions against closed forms, axioms and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.interpret.attribution import (
    completeness_gap,
    gradient,
    gradient_times_attention,
    gradient_times_input,
    integrated_gradients,
    leave_one_out,
)

S, M = 5, 3


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def linear(x):
    return (jnp.asarray(normal(0, S, M)) * x).sum() + 2


def network(x):
    """Positions meet, and the third is read by nobody."""
    read = jnp.ones((S, 1)).at[2].set(0)
    mixed = jnp.tanh((x * read).sum(0) @ normal(1, M, M))
    return jax.nn.sigmoid(mixed @ normal(2, M)) * jnp.cos((x * read)[0, 0])


def test_of_a_linear_function_all_methods_know_the_answer():
    x, slope = normal(3, S, M), normal(0, S, M)
    np.testing.assert_allclose(gradient(linear, x), np.sqrt((slope**2).sum(-1)), rtol=1e-5)
    parts = (slope * x).sum(-1)
    np.testing.assert_allclose(gradient_times_input(linear, x), parts, rtol=1e-4)
    np.testing.assert_allclose(integrated_gradients(linear, x, steps=3), parts, rtol=1e-4)


def test_integrated_gradients_of_powers():
    """The integral of 3 (a x)^2 x over a is x^3; the midpoint rule misses 1 / (4 n^2) of it."""
    x = normal(4, S, M)
    found = integrated_gradients(lambda x: (x**3).sum(), x, steps=10)
    np.testing.assert_allclose(found, (x**3).sum(-1) * (1 - 1 / 400), rtol=1e-4)


@pytest.mark.parametrize("baseline", [None, normal(5, S, M)])
def test_integrated_gradients_are_complete_and_give_nothing_to_what_is_not_read(baseline):
    x = normal(6, S, M)
    found = jax.jit(lambda x: integrated_gradients(network, x, baseline, steps=100))(x)
    start = np.zeros_like(x) if baseline is None else baseline
    change = float(network(x) - network(start))
    assert abs(change) > 0.05
    assert float(found.sum()) == pytest.approx(change, abs=2e-3)
    assert found[2] == 0 != found[0]
    gap = completeness_gap(network, x, found, baseline)
    assert float(gap) == pytest.approx(float(found.sum()) - change, abs=1e-6)
    coarse = integrated_gradients(network, x, baseline, steps=2)
    assert abs(completeness_gap(network, x, coarse, baseline)) > abs(gap)


def test_chunks_change_nothing():
    x = normal(6, S, M)
    whole = integrated_gradients(network, x, steps=10, batch_size=10)
    np.testing.assert_allclose(
        integrated_gradients(network, x, steps=10, batch_size=3), whole, rtol=1e-5
    )


@pytest.mark.parametrize("batch_size", [2, 32])
def test_leave_one_out_is_a_loop(batch_size):
    table = jnp.asarray(normal(7, 10, M))
    tokens = np.array([3, 1, 4, 1, 9])

    def f(tokens):
        return network(table[tokens])

    expected = []
    for i in range(S):
        other = tokens.copy()
        other[i] = 0
        expected.append(float(f(tokens) - f(other)))
    found = leave_one_out(f, tokens, 0, batch_size)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[2] == 0 and np.abs(expected).max() > 0.05


def test_gradient_times_attention_is_what_is_read_when_outputs_are_linear():
    values = normal(8, 2, S)
    weights = np.random.default_rng(9).dirichlet(np.ones(S), 2).astype(np.float32)
    found = gradient_times_attention(lambda w: (w * values).sum(), weights)
    np.testing.assert_allclose(found, weights * values, rtol=1e-6)
