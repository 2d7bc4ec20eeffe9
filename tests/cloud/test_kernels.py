"""The rows of a TPU have 128 lanes: what narrower heads cost a Pallas kernel."""

import jax
import jax.numpy as jnp
import pytest

from research.attention.implementations import splash
from research.cloud.kernels import Kernel, padded_kernel

B, T, H = 2, 256, 4


def traced(width, value_width=0, dtype=jnp.bfloat16):
    """Returns the jaxpr of splash attention for a TPU, within a loop as layers are."""
    q = jax.ShapeDtypeStruct((B, T, H, width), dtype)
    v = jax.ShapeDtypeStruct((B, T, H, value_width or width), dtype)

    def layers(q, k, v):
        def layer(total, _):
            return total + splash.attend(q, k, v).sum(dtype=jnp.float32), None

        return jax.lax.scan(jax.checkpoint(layer), jnp.float32(0), None, length=3)[0]

    with jax.default_device("tpu"):
        return jax.make_jaxpr(layers)(q, q, v).jaxpr


@pytest.mark.parametrize("width", [16, 64, 128, 256])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_heads_are_padded_to_128(width, dtype):
    found = padded_kernel(traced(width, dtype=dtype))
    wide = max(width, 128)
    size = jnp.dtype(dtype).itemsize * B * T * H
    # Queries, keys, values and outputs.
    assert found.extra == 4 * size * (wide - width)
    assert found.padding == wide / width


def test_values_may_be_wider_than_keys():
    # 64 of 128 lanes in queries and keys, all in values and outputs.
    assert padded_kernel(traced(64, 128)).padding == (4 * 128) / (2 * 64 + 2 * 128)


def test_without_a_kernel_nothing_is_padded():
    jaxpr = jax.make_jaxpr(lambda x: jnp.tanh(x) @ x.T)(jnp.zeros((4, 16))).jaxpr
    assert padded_kernel(jaxpr) == Kernel()
