"""Rows by a product are those that indexing gives, exactly, and so are their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import lookup as module
from research.models.lookup import MOST, lookup


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_takes_the_same_rows(monkeypatch, dtype):
    table = jax.random.normal(jax.random.key(0), (7, 5)).astype(dtype)
    tokens = jax.random.randint(jax.random.key(1), (3, 40), 0, 6)  # the last row is never taken
    weights = jax.random.normal(jax.random.key(2), (3, 40, 5)).astype(dtype)

    def found(platform):
        monkeypatch.setattr(module, "platform", lambda: platform)

        def loss(table):
            rows = lookup(table, tokens)
            return (rows * weights).astype(jnp.float32).sum(), rows

        (_, rows), gradient = jax.value_and_grad(loss, has_aux=True)(table)
        return rows, np.asarray(gradient, np.float32)

    (indexed, scattered), (multiplied, added) = found("cpu"), found("gpu")
    np.testing.assert_array_equal(indexed, table[tokens])
    np.testing.assert_array_equal(multiplied, indexed)
    np.testing.assert_allclose(added, scattered, atol=1e-5 if dtype == jnp.float32 else 0.3)
    assert not added[-1].any() and added[:6].any(-1).all()


@pytest.mark.parametrize(
    ("platform", "rows", "tokens", "products"),
    [
        ("cpu", 10, 100, 0),
        ("gpu", 10, 100, 1),
        ("tpu", 10, 100, 1),
        ("gpu", 10, 9, 0),  # a step of decoding: nothing is added, and a row is less than the table
        ("gpu", MOST + 1, 4 * MOST, 0),
    ],
)
def test_a_product_is_taken_where_it_is_cheaper(monkeypatch, platform, rows, tokens, products):
    monkeypatch.setattr(module, "platform", lambda: platform)
    table, tokens = jnp.zeros((rows, 4)), jnp.zeros(tokens, jnp.int32)
    text = str(jax.make_jaxpr(lambda t: lookup(t, tokens))(table))
    assert text.count("dot_general") == products and text.count("gather[") == 1 - products
