"""What every mixer has to do, for every entry of the registry."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.masks import padding
from research.attention.mixer import init_params, state_bytes
from research.attention.registry import Options, make_mixer
from tests.attention.cases import CASES, close, problem, visible, weighted

cases = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
# Sizes of the chunks that a sequence is fed in; 7 exceeds the window of the cases, which is 5.
CHUNKS = [(7, 1, 1, 3), (3, 1, 1, 7)]


def decodable(options) -> bool:
    return options.mask != "full"


@cases
def test_parameters_are_described(options):
    mixer, _, _, _ = problem(options)
    described = mixer.parameters()
    params = jax.eval_shape(lambda: init_params(mixer, jax.random.key(3)))
    for name, parameter in described.items():
        assert params[name].shape == parameter.shape
        assert params[name].dtype == jnp.float32
        assert len(parameter.axes) == len(parameter.shape)
    # Two mixers of the same options are one static argument to jit.
    assert hash(mixer) == hash(type(mixer)(**vars(mixer)))


@cases
def test_gradient_reaches_exactly_what_is_visible(options):
    mixer, params, x, _ = problem(options)

    @jax.jit
    def influence(x):
        def output(t, x):
            return weighted(jax.lax.dynamic_index_in_dim(mixer(params, x), t, 1, False))

        grads = jax.vmap(jax.grad(output, argnums=1), (0, None))(jnp.arange(x.shape[1]), x)
        return jnp.abs(grads).max((1, 3))

    found = np.asarray(influence(x))
    expected = visible(options)
    # The Fourier transform leaves rounding where there should be nothing.
    assert found[~expected].max(initial=0) < 1e-5 * found.max()
    assert found[expected].min() > 1e-4 * found.max()


@cases
def test_feeding_chunks_equals_the_whole(options):
    mixer, params, x, forward = problem(options)
    if not decodable(options):
        with pytest.raises(Unsupported, match="looks ahead"):
            mixer.init_state(2, options.max_length, "float32")
        return
    extend = jax.jit(mixer.extend)
    expected = forward(params, x)
    for sizes in CHUNKS:
        if sizes[0] < options.prefix_length:
            continue
        state, done = mixer.init_state(x.shape[0], options.max_length, x.dtype), 0
        structure = jax.eval_shape(lambda s=state: s)
        while done < options.max_length:
            for size in sizes:
                state, y = extend(params, state, x[:, done : done + size])
                close(y, expected[:, done : done + size])
                done += size
        # A state that changed type could not be carried by a compiled loop.
        assert jax.eval_shape(lambda s=state: s) == structure


@cases
def test_state_bytes_are_those_of_the_state(options):
    mixer = problem(options)[0]
    if not decodable(options):
        return
    for dtype in ("float32", "bfloat16"):
        state = mixer.init_state(3, 9, dtype)
        assert state_bytes(mixer, 3, 9, dtype) == sum(a.nbytes for a in jax.tree.leaves(state)) > 0


@cases
def test_batch_rows_are_independent(options):
    _, params, x, forward = problem(options)
    other = x.at[1].set(x[1] * 100 + 3)
    assert np.array_equal(forward(params, x)[0], forward(params, other)[0])


@cases
def test_compiled_equals_eager(options):
    mixer, params, x, forward = problem(options)
    close(forward(params, x), mixer(params, x))


@cases
def test_bfloat16_is_near_float32(options):
    mixer, params, x, forward = problem(options)
    low = forward(params, x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    exact = np.asarray(forward(params, x))
    error = np.sqrt(np.mean((np.asarray(low, np.float32) - exact) ** 2))
    # bfloat16 rounds to 1 part in 256; the sums and the peaked softmax of these cases magnify it.
    assert error < 0.05 * exact.std()
    if decodable(options):
        state = mixer.init_state(x.shape[0], options.max_length, jnp.bfloat16)
        _, first = jax.jit(mixer.extend)(params, state, x[:, :7].astype(jnp.bfloat16))
        assert first.dtype == jnp.bfloat16
        error = np.sqrt(np.mean((np.asarray(first, np.float32) - exact[:, :7]) ** 2))
        assert error < 0.05 * exact.std()


@cases
def test_population_axis(options):
    mixer, params, x, forward = problem(options)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    both = jax.jit(jax.vmap(mixer, (0, None)))(stacked, x)
    close(both[0], forward(params, x))
    close(both[1], forward(jax.tree.map(lambda p: 0.5 * p, params), x))


@cases
def test_padding_is_taken_or_refused(options):
    mixer, params, x, forward = problem(options)
    valid = jnp.arange(x.shape[1])[None] < jnp.array([[x.shape[1]], [8]])
    if options.mixer != "softmax":
        with pytest.raises(Unsupported, match="'softmax' can"):
            mixer(params, x, mask=padding(valid))
        return
    masked = jax.jit(lambda x: mixer(params, x, mask=padding(valid)))
    # What stands in the padding does not matter, and without padding nothing changes.
    assert np.array_equal(masked(x)[1, :8], masked(x.at[1, 8:].set(5.0))[1, :8])
    close(masked(x)[0], forward(params, x)[0])


def test_initial_scale_follows_the_options():
    def stddev(**kw):
        mixer = make_mixer(Options(width=64, num_heads=4, max_length=8, **kw))
        params = jax.jit(init_params, static_argnums=0)(mixer, jax.random.key(0))
        return {name: float(p.std()) for name, p in params.items()}

    assert math.isclose(stddev()["query"], 0.02, rel_tol=0.05)
    assert math.isclose(stddev(num_layers=8)["out"], 0.02 / 4, rel_tol=0.05)
    assert math.isclose(stddev(init_stddev=0.0)["value"], 1 / 8, rel_tol=0.05)
    gate = stddev(init_stddev=0.1, mixer="gated_convolution")["gate"]
    assert math.isclose(gate, 0.1, rel_tol=0.05)


def test_window_cache_is_no_larger_than_the_window():
    mixer = make_mixer(Options(width=8, num_heads=2, max_length=1000, mask="window", window=5))
    assert mixer.init_state(1, 1000, "float32")["k"].shape == (1, 5, 2, 4)
    assert mixer.init_state(1, 3, "float32")["k"].shape == (1, 3, 2, 4)
