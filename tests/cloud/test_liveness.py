"""Liveness against sizes that can be counted by hand, and against XLA's own figure."""

import jax
import jax.numpy as jnp
import pytest

from research.cloud.liveness import measure


def need(f, *shapes, fraction=lambda shape, dtype: 1.0):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return measure(jax.make_jaxpr(f)(*arguments).jaxpr, fraction)


SQUARE = 64 * 64 * 4


def chain(x, w):
    for _ in range(5):
        x = jnp.tanh(x @ w)
    return x


def test_a_chain_of_products_needs_two_buffers():
    assert need(chain, (64, 64), (64, 64)).peak == 2 * SQUARE


def test_fused_work_is_not_stored():
    assert need(lambda x: (jnp.exp(x) * 2 + 1).sum(), (64, 64)).peak == 4


def test_a_product_that_is_used_twice_is_stored_until_then():
    def f(x, w):
        y = x @ w
        z = (y @ w) @ w
        return y * z  # into where the last product is

    assert need(f, (64, 64), (64, 64)).peak == 3 * SQUARE


def test_a_scan_needs_one_turn_and_what_it_stacks():
    def f(x, ws):
        def body(x, w):
            y = jnp.tanh(x @ w)
            return y, y

        return jax.lax.scan(body, x, ws)[1]

    found = need(f, (64, 64), (10, 64, 64))
    assert 10 * SQUARE <= found.peak <= 13 * SQUARE
    assert found.saved == 0  # nothing but the caller reads the stack


def loss(ws, x):
    layer = jax.checkpoint(lambda x, w: (jnp.tanh(jnp.tanh(x @ w) @ w), None), prevent_cse=False)
    return jax.lax.scan(layer, x, ws)[0].sum()


@pytest.mark.parametrize("layers", [4, 16])
def test_remat_saves_the_input_of_each_layer(layers):
    found = need(jax.grad(loss), (layers, 64, 64), (64, 64))
    assert found.saved == layers * SQUARE


def test_what_a_device_holds_a_part_of_counts_as_such():
    def f(x, w):
        return x @ w

    half = need(f, (64, 64), (64, 64), fraction=lambda shape, dtype: 0.5)
    assert half.peak == need(f, (64, 64), (64, 64)).peak / 2


def test_bytes_of_a_product_are_what_it_reads_and_writes():
    assert need(lambda x, w: x @ w, (64, 32), (32, 16)).moved == 4 * (64 * 32 + 32 * 16 + 64 * 16)


def test_bytes_of_a_loop_are_those_of_all_turns():
    def f(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

    assert need(f, (64, 64), (10, 64, 64)).moved == 10 * 3 * SQUARE


@pytest.mark.parametrize("layers", [2, 8])
def test_peak_is_near_that_of_xla(layers):
    shapes = (layers, 256, 256), (512, 256)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    # XLA counts a result apart from temporaries.
    xla = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    assert need(jax.grad(loss), *shapes).peak == pytest.approx(xla, rel=0.3)
