"""What every mixer has to do, for every entry of the registry."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import registry
from research.attention.errors import Unsupported
from research.attention.mixers.mixer import init_params, state_bytes
from research.attention.options import Options, make_mixer
from research.attention.parts.masks import padding
from tests.attention.cases import (
    BUILDS,
    CASES,
    ELSEWHERE,
    LENGTH,
    NAMED,
    PADDABLE,
    SPARSE,
    close,
    decodable,
    drawn,
    problem,
    some_padding,
    visible,
    weighted,
)

cases = pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
builds = pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=() if name in BUILDS else pytest.mark.slow)
        for name, options in CASES.items()
    ],
)
# Sizes of the chunks that a sequence is fed in; 5 exceeds the windows of the cases.
CHUNKS = (5, 1, 1, 5)


@cases
def test_parameters_are_described(options):
    mixer, _, _, _ = problem(options)
    described = mixer.parameters()
    params = jax.eval_shape(lambda: init_params(mixer, jax.random.key(3)))
    for name, parameter in described.items():
        assert params[name].shape == parameter.shape
        assert params[name].dtype == jnp.float32
        assert len(parameter.axes.names) == len(parameter.shape)
    # Two mixers of the same options are one static argument to jit.
    again = make_mixer(options)
    assert mixer == again
    assert hash(mixer) == hash(again)


@cases
def test_gradient_reaches_exactly_what_is_visible(options):
    mixer, params, x, _ = problem(options)

    @jax.jit
    def influence(x):
        def output(t, x):
            return weighted(jax.lax.dynamic_index_in_dim(mixer(params, x), t, 1, False))

        grads = jax.lax.map(lambda t: jax.grad(output, argnums=1)(t, x), jnp.arange(x.shape[1]))
        return jnp.abs(grads).max((1, 3))

    found = np.asarray(influence(x))
    expected = visible(options)
    # The Fourier transform leaves rounding where there should be nothing.
    rounding = 1e-5 * found.max() if options.mixer == "gated_convolution" else 0
    assert found[~expected].max(initial=0) <= rounding
    if options.predicted_window or any(getattr(options, f) in v for f, v in SPARSE.items()):
        assert (found[expected] > 0).mean() > 0.5
    else:
        assert found[expected].min() > 1e-7 * found.max()


@cases
def test_feeding_chunks_equals_the_whole(options):
    mixer, params, x, forward = problem(options)
    if not decodable(options):
        with pytest.raises(Unsupported, match="looks ahead"):
            mixer.init_state(2, options.max_length, "float32")
        return
    extend = jax.jit(mixer.extend)
    expected = forward(params, x)
    state, done = mixer.init_state(x.shape[0], options.max_length, x.dtype), 0
    structure = jax.eval_shape(lambda s=state: s)
    while done < options.max_length:
        for size in CHUNKS:
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


@builds
def test_batch_rows_are_independent(options):
    _, params, x, forward = problem(options)
    other = x.at[1].set(x[1] * 100 + 3)
    assert np.array_equal(forward(params, x)[0], forward(params, other)[0])


@cases
def test_gradient_equals_finite_differences_in_float64(options):
    """Along one direction through the input and all parameters at once."""
    with jax.enable_x64(True):
        mixer = make_mixer(options)
        generator = np.random.default_rng(5)

        def like(tree):
            return jax.tree.map(lambda a: jnp.asarray(generator.normal(size=a.shape)), tree)

        shape = (1, options.max_length, options.width)
        point = (drawn(mixer), jnp.asarray(generator.normal(size=shape)))
        direction = like(point)

        def along(step):
            return weighted(mixer(*jax.tree.map(lambda p, d: p + step * d, point, direction)))

        step = 1e-6
        at = jnp.asarray([0.0, step, -step], jnp.float64)
        run = jax.jit(lambda at: jax.lax.map(jax.value_and_grad(along), at))
        (value, ahead, behind), (slope, _, _) = (np.asarray(a) for a in run(at))
        assert value.dtype == slope.dtype == np.float64
    measured = (ahead - behind) / (2 * step)
    assert abs(slope) > 0
    assert abs(measured - slope) < 1e-5 * max(abs(slope), 1.0)


@builds
def test_compiled_equals_eager(options):
    mixer, params, x, forward = problem(options)
    with jax.disable_jit():
        eager = mixer(params, x)
    close(forward(params, x), eager)


@builds
def test_bfloat16_is_near_float32(options):
    mixer, params, x, forward = problem(options)
    low = forward(params, x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    exact = np.asarray(forward(params, x))
    error = np.sqrt(np.mean((np.asarray(low, np.float32) - exact) ** 2))
    # bfloat16 rounds to 1 part in 256; the sums and the peaked softmax of these cases magnify it.
    assert error < 0.06 * exact.std()
    if decodable(options):
        state = mixer.init_state(x.shape[0], options.max_length, jnp.bfloat16)
        chunk = jax.ShapeDtypeStruct((*x.shape[:1], 1, *x.shape[2:]), jnp.bfloat16)
        after, first = jax.eval_shape(mixer.extend, params, state, chunk)
        assert first.dtype == jnp.bfloat16
        assert after == jax.eval_shape(lambda: state)


@builds
def test_population_lane_equals_single_run(options):
    mixer, params, x, forward = problem(options)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    both = jax.jit(jax.vmap(mixer, (0, None)))(stacked, x)
    close(both[0], forward(params, x))
    close(both[1], forward(jax.tree.map(lambda p: 0.5 * p, params), x))


@cases
def test_padding_is_taken_or_refused(options):
    mixer, params, x, forward = problem(options)
    if options.mixer not in PADDABLE:
        with pytest.raises(Unsupported, match="'softmax' can"):
            mixer(params, x, mask=some_padding(options))
        return

    @jax.jit
    def run(x, valid):
        def loss(x):
            out = mixer(params, x, mask=padding(valid))
            return weighted(out), out

        return jax.grad(loss, has_aux=True)(x)[::-1]

    whole = jnp.ones(x.shape[:2], bool)
    some = whole.at[1, 8:].set(False)
    out, _ = run(x, some)
    # What stands in the padding does not matter, and without padding nothing changes.
    assert np.array_equal(out[1, :8], run(x.at[1, 8:].set(5.0), some)[0][1, :8])
    close(out[0], forward(params, x)[0])
    # A row with nothing to see reads zeros, and no gradient is lost to them.
    out, gradient = run(x, whole.at[1].set(False))
    assert np.isfinite(gradient).all()
    close(out[1], jnp.broadcast_to(params.get("out_bias", jnp.zeros(())), out[1].shape))
    close(out[0], forward(params, x)[0])


FORMS = [
    (name, form)
    for name, entry in registry.MIXERS.items()
    for form in entry.implementations[1:]
    if form not in ELSEWHERE
]


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_implementation_gives_the_same_values_gradients_and_states(name, form):
    entry = registry.MIXERS[name]
    base = {"width": 16, "num_heads": 4, "max_length": LENGTH, "mixer": name}
    base |= {} if entry.causal else {"mask": "full"}
    base |= {"block_size": 5} if "block_size" in entry.parts else {}

    def run(implementation):
        mixer, params, x, _ = problem(Options(**base, implementation=implementation))

        def loss(params, x):
            out = mixer(params, x)
            return weighted(out), out

        def extended(x):
            state = mixer.init_state(x.shape[0], LENGTH, x.dtype)
            return mixer.extend(params, mixer.extend(params, state, x[:, :5])[0], x[:, 5:])

        gradients = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)
        return gradients, jax.jit(extended)(x)

    close(run(form), run(entry.implementations[0]), 1e-4)


UNPLACED = [
    name
    for name, o in NAMED.items()
    if o.mask == "full" and o.mixer != "linformer" and o.position == "none"
]


@pytest.mark.parametrize("name", UNPLACED)
def test_permuting_the_input_permutes_the_output(name):
    """Nothing but a position encoding or a mask tells one place from another."""
    _, params, x, forward = problem(NAMED[name])
    order = np.random.default_rng(1).permutation(LENGTH)
    close(forward(params, x[:, order]), forward(params, x)[:, order])


RELATIVE = ("none", "rope", "alibi", "t5", "kerple", "shaw", "transformer_xl")


@pytest.mark.parametrize("position", RELATIVE)
def test_relative_positions_do_not_see_where_the_sequence_starts(position):
    """Under a window, what is written far behind does not change what is read, nor does how far."""
    base = {"width": 16, "num_heads": 4, "max_length": 24, "mask": "window", "window": 4}
    _, params, _, forward = problem(Options(**base, position=position))
    x = jax.random.normal(jax.random.key(4), (1, 12, 16))
    before = jax.random.normal(jax.random.key(5), (1, 9, 16))
    shifted = forward(params, jnp.concatenate([before, x], axis=1))
    # The first window - 1 outputs see what was written before.
    close(shifted[:, 9 + 3 :], forward(params, x)[:, 3:])


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


def test_sinks_are_kept_beside_the_window():
    sinks = {"mask": "window | causal & global", "window": 5, "global_tokens": 2}
    mixer = make_mixer(Options(width=8, num_heads=2, max_length=1000, **sinks))
    state = mixer.init_state(1, 1000, "float32")
    assert state["k"].shape == (1, 7, 2, 4)
    params = drawn(mixer)
    extend = jax.jit(mixer.extend)
    for _ in range(20):
        state, _ = extend(params, state, jnp.ones((1, 1, 8)))
    assert sorted(state["positions"].tolist()) == [0, 1, 15, 16, 17, 18, 19]


def test_latent_state_is_the_latent():
    options = Options(
        width=64, num_heads=8, max_length=100, mixer="latent", latent_width=12, rope_width=4,
        position="rope",
    )  # fmt: skip
    mixer = make_mixer(options)
    # 16 numbers a token, where 8 heads of keys and values of 8 would be 128.
    assert state_bytes(mixer, 1, 100, "float32") == 100 * (12 + 4) * 4 + 100 * 4 + 4
