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
from tests.compiled import compiled

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


integrated, outputs = compiled(integrated_gradients, 0, 3, 4), compiled(network)


def test_of_a_linear_function_all_methods_know_the_answer():
    x, slope = normal(3, S, M), normal(0, S, M)
    np.testing.assert_allclose(
        compiled(gradient, 0)(linear, x), np.sqrt((slope**2).sum(-1)), rtol=1e-5
    )
    parts = (slope * x).sum(-1)
    np.testing.assert_allclose(compiled(gradient_times_input, 0)(linear, x), parts, rtol=1e-4)
    np.testing.assert_allclose(integrated(linear, x, None, 3), parts, rtol=1e-4)


def test_integrated_gradients_of_powers():
    """The integral of 3 (a x)^2 x over a is x^3; the midpoint rule misses 1 / (4 n^2) of it."""
    x = normal(4, S, M)
    found = integrated(lambda x: (x**3).sum(), x, None, 10)
    np.testing.assert_allclose(found, (x**3).sum(-1) * (1 - 1 / 400), rtol=1e-4)


@pytest.mark.parametrize("baseline", [None, normal(5, S, M)])
def test_integrated_gradients_are_complete_and_give_nothing_to_what_is_not_read(baseline):
    x = normal(6, S, M)
    found = integrated(network, x, baseline, 100)
    start = np.zeros_like(x) if baseline is None else baseline
    change = float(outputs(x) - outputs(start))
    assert abs(change) > 0.05
    assert float(found.sum()) == pytest.approx(change, abs=2e-3)
    assert found[2] == 0 != found[0]
    gap_of = compiled(completeness_gap, 0)
    gap = gap_of(network, x, found, baseline)
    assert float(gap) == pytest.approx(float(found.sum()) - change, abs=1e-6)
    coarse = integrated(network, x, baseline, 2)
    assert abs(gap_of(network, x, coarse, baseline)) > abs(gap)


def test_chunks_change_nothing():
    x = normal(6, S, M)
    whole = integrated(network, x, None, 10, 10)
    np.testing.assert_allclose(integrated(network, x, None, 10, 3), whole, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 32])
def test_leave_one_out_is_a_loop(batch_size):
    table = normal(7, 10, M)
    tokens = np.array([3, 1, 4, 1, 9])

    def f(tokens):
        return network(jnp.asarray(table)[tokens])

    expected = []
    for i in range(S):
        other = tokens.copy()
        other[i] = 0
        expected.append(float(outputs(table[tokens]) - outputs(table[other])))
    found = compiled(leave_one_out, 0, 2, 3)(f, tokens, 0, batch_size)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found[2] == 0 and np.abs(expected).max() > 0.05


def test_gradient_times_attention_is_what_is_read_when_outputs_are_linear():
    values = normal(8, 2, S)
    weights = np.random.default_rng(9).dirichlet(np.ones(S), 2).astype(np.float32)
    found = compiled(gradient_times_attention, 0)(lambda w: (w * values).sum(), weights)
    np.testing.assert_allclose(found, weights * values, rtol=1e-6)
