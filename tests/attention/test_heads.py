"""From multi-head to grouped key heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.parts.heads import group_heads
from research.attention.spec import make_mixer
from tests.attention.cases import close, drawn

BASE = {"width": 16, "num_heads": 4, "max_length": 12, "use_bias": True, "position": "rope"}
X = jnp.asarray(np.random.default_rng(3).normal(size=(2, 12, 16)), jnp.float32)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_pooling_equal_heads_changes_nothing(kv_heads):
    """Heads that are the same within a group are worth as much as one."""
    many, few = (make_mixer(**BASE, num_kv_heads=k) for k in (4, kv_heads))
    shared = drawn(few)
    again = {
        name: jnp.repeat(a, 4 // kv_heads, -2) if name.split("_")[0] in ("key", "value") else a
        for name, a in shared.items()
    }
    assert {n: a.shape for n, a in again.items()} == {
        n: p.shape for n, p in many.parameters().items()
    }
    pooled = group_heads(again, kv_heads)
    close(pooled, shared)
    close(jax.jit(few.__call__)(pooled, X), jax.jit(many.__call__)(again, X))


def test_pooling_takes_the_mean_of_neighbours_in_every_layer():
    params = {"query": jnp.ones((3, 16, 4, 4)), "key": jnp.arange(3.0 * 16 * 4 * 4)}
    params["key"] = params["key"].reshape(3, 16, 4, 4)
    found = group_heads(params, 2)
    assert found["query"] is params["query"]
    np.testing.assert_array_equal(found["key"][:, :, 1], params["key"][:, :, 2:].mean(2))


def test_a_number_of_heads_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="num_kv_heads = 3; it must divide the 4 there are"):
        group_heads({"key": jnp.ones((16, 4, 4))}, 3)
