"""What every mixer has to do, for every entry of the registry."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention import registry
from research.attention.errors import Unsupported
from research.attention.mixers.mixer import init_params, state_bytes
from research.attention.parts.masks import padding
from research.attention.parts.segments import segments
from research.attention.spec import MixerSpec, make_mixer, mixer_spec
from tests.attention.cases import (
    BUILDS,
    CASES,
    ELSEWHERE,
    LENGTH,
    NAMED,
    PADDABLE,
    REPEATED,
    SELECTING,
    SPARSE,
    absolute,
    close,
    decodable,
    drawn,
    mixes_segments,
    problem,
    visible,
    weighted,
)
from tests.attention.conformance import (
    CHUNKS,
    RUNS,
    STARTS,
    STEP,
    UNPADDED,
    VALID,
    WHOLE_RUNS,
    found,
    given,
    in_chunks,
    narrow,
    opaque,
)

# What is left to say that there is nothing to look at.
OPAQUE = ("native_sparse", "rwkv7", "gru", "lstm")
# One of each way to go over a sequence.
EAGER = ("softmax", "linear", "gated_convolution", "gru")
WHOLE, AHEAD, BEHIND, PARTED, MOVED, PADDED, OTHERWISE, NOTHING = range(len(RUNS))


def fast(names):
    """Marks a test of all cases, those of other names as slow."""
    chosen = [
        pytest.param(options, id=name, marks=() if name in names else pytest.mark.slow)
        for name, options in CASES.items()
    ]
    return pytest.mark.parametrize("options", chosen)


cases = fast(CASES.keys() - REPEATED)
builds = fast(BUILDS)


@cases
def test_parameters_are_described(options):
    mixer = options.make()
    described = mixer.parameters()
    params = jax.eval_shape(lambda key: init_params(mixer, key), jax.eval_shape(jax.random.key, 3))
    assert params.keys() == described.keys()
    for name, parameter in described.items():
        assert params[name].shape == parameter.shape
        assert params[name].dtype == jnp.float32
        assert len(parameter.axes.names) == len(parameter.shape)
    # Two mixers of the same options are one static argument to jit.
    again = options.make()
    assert mixer == again
    assert hash(mixer) == hash(again)


@cases
def test_gradient_reaches_exactly_what_is_visible(options):
    influence = found(options).influence
    reached = influence[WHOLE].max(1)
    expected = visible(options)
    # The Fourier transform leaves rounding where there should be nothing, and so do differences: of
    # sums of forget gates, and what a token's own output does not have yet of a trapezoidal rule.
    rounds = options.name == "gated_convolution" or any(
        getattr(options.options, name, False) for name in ("forget_gate", "trapezoidal")
    )
    rounding = 1e-14 * reached.max() if rounds else 0
    assert reached[~expected].max(initial=0) <= rounding
    if any(map(options.values.get, SELECTING)) or any(
        options.values.get(f) in v for f, v in SPARSE.items()
    ):
        assert (reached[expected] > 0).mean() > 0.5
    else:
        assert reached[expected].min() > 1e-7 * reached.max()


@cases
def test_gradient_equals_finite_differences(options):
    """Along one direction through the input and all parameters at once."""
    one = found(options)
    assert one.loss.dtype == one.slope.dtype == np.float64
    slope = one.slope[WHOLE]
    measured = (one.loss[AHEAD] - one.loss[BEHIND]) / (2 * STEP)
    assert abs(slope) > 0
    assert abs(measured - slope) < 1e-5 * max(abs(slope), 1.0)


@cases
def test_feeding_chunks_equals_the_whole(options):
    if decodable(options):
        close(found(options).chunks, found(options).out[WHOLE], 1e-11)
    else:
        with pytest.raises(Unsupported, match="looks ahead"):
            options.make().init_state(2, options.context.max_length, "float32")


@cases
def test_state_bytes_are_those_of_the_state(options):
    mixer = options.make()
    if not decodable(options):
        return
    for dtype in ("float32", "bfloat16"):
        state = mixer.init_state(3, 9, dtype)
        assert state_bytes(mixer, 3, 9, dtype) == sum(a.nbytes for a in jax.tree.leaves(state)) > 0


@cases
def test_padding_is_taken_or_refused(options):
    one, (params, x) = found(options), given(options)
    if options.name not in PADDABLE:
        with pytest.raises(Unsupported, match="'softmax' can"):
            mask = padding(jnp.asarray(np.ones(x.shape[:2], bool)))
            jax.eval_shape(lambda p, x: options.make()(p, x, mask=mask), params, x)
        return
    # A row without padding does not change, and what stands in the padding does not matter.
    close(one.out[PADDED, 0], one.out[WHOLE, 0], 1e-11)
    assert np.array_equal(one.out[PADDED, 1, :VALID], one.out[OTHERWISE, 1, :VALID])
    if options.name != "linformer":
        assert not one.influence[PADDED, :VALID, 1, VALID:].any()
    # A row with nothing to see reads zeros, and no gradient is lost to them.
    assert np.isfinite(one.influence).all()
    assert np.isfinite(one.slope).all()
    bias = params.get("out_bias", np.zeros(()))
    close(one.out[NOTHING, 1], np.broadcast_to(bias, one.out[NOTHING, 1].shape))
    close(one.out[NOTHING, 0], one.out[WHOLE, 0], 1e-11)


@cases
def test_segments_are_kept_apart_or_refused(options):
    """No output depends on another segment, and a segment's are those of the segment alone."""
    one, (params, x) = found(options), given(options)
    index = np.arange(x.shape[1])
    if mixes_segments(options):
        mask = segments(*[jnp.zeros(x.shape[:2], int)] * 2)
        with pytest.raises(Unsupported, match=r"'softmax' can|positions only can"):
            jax.eval_shape(lambda p, x: options.make()(p, x, mask=mask), params, x)
        return
    for row, starts in enumerate(STARTS):
        ids = np.searchsorted(starts, index, side="right")
        others = one.influence[PARTED, :, row][ids[:, None] != ids]
        # Sums of decays to both ends of a segment differ by rounding.
        assert others.max() <= 1e-14 * one.influence[PARTED].max()
        same = one.influence[PARTED, :, row][ids[:, None] == ids]
        assert (same > 0).sum() > len(index), "not only of the token itself"
        first, stop = starts[0], (*starts[1:], len(index))[0]
        if not absolute(options):
            close(one.out[MOVED, row, : stop - first], one.out[PARTED, row, first:stop], 1e-11)
    # The first segment is what it is without others.
    if decodable(options):
        close(one.out[PARTED, :, : STARTS[0][0]], one.out[WHOLE, :, : STARTS[0][0]], 1e-11)
    assert np.abs(one.out[PARTED] - one.out[WHOLE]).max() > 1e-3


def test_only_gated_networks_have_nothing_to_look_at():
    without = {o.name for o in CASES.values() if opaque(o.make())}
    assert without == set(OPAQUE), (
        "give a mixer `attention_trace` and `merge`, or name it in OPAQUE"
    )


@cases
def test_what_is_looked_at_makes_the_output(options):
    """Weights times values do, also where there is padding."""
    mixer, (params, x), one = options.make(), given(options), found(options)
    if opaque(mixer):
        with pytest.raises(Unsupported, match="no attention weights"):
            jax.eval_shape(mixer.attention_trace, params, x)
        with pytest.raises(Unsupported, match="nothing to merge"):
            jax.eval_shape(mixer.merge, params, x, x[:, :, None])
        return
    assert one.weights.dtype == np.float64
    assert one.weights.shape[1::2] == (len(x), options.context.max_length)
    # A weight where nothing can be seen would be a leak or a picture of one.
    assert not one.weights[..., ~visible(options)].any()
    close(one.rebuilt[:2], one.out[[WHOLE, PARTED]], 1e-11)
    if options.name in PADDABLE:
        close(one.rebuilt[2, 1, :VALID], one.out[PADDED, 1, :VALID], 1e-11)
        if options.name != "linformer":
            assert not one.weights[2, 1, :, :VALID, VALID:].any()


@builds
def test_float32_is_near_float64(options):
    """And without a mask like with one that hides nothing, as `found` has it if it can."""
    one, (out, slope, _, _) = found(options), narrow(options)
    assert out.dtype == slope.dtype == np.float32
    close(out[0], one.out[WHOLE])
    close(slope[0], one.slope[WHOLE], 1e-4)


@builds
def test_batch_rows_are_independent(options):
    out = narrow(options).out
    assert np.array_equal(out[0, 0], out[1, 0])


@builds
def test_population_lane_equals_single_run(options):
    one = narrow(options)
    close(one.both[0], one.out[0])
    close(one.both[1], one.out[2])


@builds
def test_bfloat16_is_near_float32(options):
    low, exact = narrow(options).low, narrow(options).out[0]
    assert low.dtype == jnp.bfloat16
    error = np.sqrt(np.mean((np.asarray(low, np.float32) - exact) ** 2))
    # bfloat16 rounds to 1 part in 256; the sums and the peaked softmax of these cases magnify it.
    assert error < 0.06 * exact.std()
    if not decodable(options):
        return
    mixer, (params, x) = options.make(), jax.tree.map(np.float32, given(options))
    for dtype in (jnp.bfloat16, jnp.float32):
        state = jax.eval_shape(lambda d=dtype: mixer.init_state(2, options.context.max_length, d))
        after, first = jax.eval_shape(mixer.extend, params, state, x[:, :1].astype(dtype))
        # A state that changed type could not be carried by a compiled loop.
        assert first.dtype == dtype
        assert after == state


@fast({next(n for n in CASES if CASES[n].name == mixer) for mixer in EAGER})
def test_compiled_equals_eager(options):
    params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), given(options))
    with jax.disable_jit():
        eager = options.make()(params, x)
    close(eager, narrow(options).out[0])


def first_case(mixer: str) -> MixerSpec:
    """The options of the first case of a mixer."""
    return next(options for options in CASES.values() if options.name == mixer)


FORMS = [
    (name, form)
    for name, entry in registry.MIXERS.items()
    for form in entry.implementations
    if form not in (*ELSEWHERE, first_case(name).implementation)
]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        # The performer and Based are linear attention with other features.
        pytest.param(*pair, marks=pytest.mark.slow if pair[0] in ("performer", "based") else ())
        for pair in FORMS
    ],
)
def test_every_implementation_gives_the_same_values_gradients_and_states(name, form):
    options = first_case(name)
    other = options.computed_by(form)
    if form in ("ring", "gather"):
        # For split sequences; on one device they are the program of another.
        unsplit = {"blockwise", "chunkwise"} & set(registry.MIXERS[name].implementations)
        assert steps(other) == steps(options.computed_by(unsplit.pop()))
    elif form == "jax_xla":
        one, (params, x) = narrow(other), jax.tree.map(np.float32, given(options))
        # Not that with another row, which is far larger.
        for actual, expected in zip(one[:2], narrow(options)[:2], strict=True):
            close(actual[::2], expected[::2], 1e-4)
        run = jax.jit(in_chunks, static_argnums=(0, 1))
        close(run(other.make(), CHUNKS, params, x), one.out[0])
    else:
        one, all_of_it = found(other, whole=True), found(options)
        close(one.chunks, all_of_it.chunks, 1e-9)
        same = len(WHOLE_RUNS if name in PADDABLE else UNPADDED)
        close([x[:same] for x in one[:4]], [x[:same] for x in all_of_it[:4]], 1e-9)


@functools.cache
def steps(options: MixerSpec) -> str:
    """What is computed forwards, backwards and by feeding, as JAX writes it."""
    mixer = options.make()

    def run(params, x):
        grads = jax.grad(lambda *a: weighted(mixer(*a)), (0, 1))(params, x)
        return grads, mixer.extend(params, mixer.init_state(*x.shape[:2], x.dtype), x)

    written = str(jax.make_jaxpr(run)(*jax.tree.map(np.float32, given(options))))
    return re.sub("0x[0-9a-f]+", "", written)


UNPLACED = [
    name
    for name, o in NAMED.items()
    if o.values.get("mask") == "full" and o.name != "linformer" and o.position == "none"
]


@pytest.mark.parametrize("name", UNPLACED)
def test_permuting_the_input_permutes_the_output(name):
    """Nothing but a position encoding or a mask tells one place from another."""
    _, params, x, forward = problem(NAMED[name])
    order = np.random.default_rng(1).permutation(LENGTH)
    close(forward(params, x[:, order]), forward(params, x)[:, order])


RELATIVE = ("none", "rope", "alibi", "t5", "kerple", "shaw", "transformer_xl", "cope")


@pytest.mark.parametrize("position", RELATIVE)
def test_relative_positions_do_not_see_where_the_sequence_starts(position):
    """Under a window, what is written far behind does not change what is read, nor does how far."""
    base = {"width": 16, "num_heads": 4, "max_length": 24, "mask": "window", "window": 4}
    _, params, _, forward = problem(mixer_spec(**base, position=position))
    x = jax.random.normal(jax.random.key(4), (1, 12, 16))
    before = jax.random.normal(jax.random.key(5), (1, 9, 16))
    shifted = forward(params, jnp.concatenate([before, x], axis=1))
    # The first window - 1 outputs see what was written before.
    close(shifted[:, 9 + 3 :], forward(params, x)[:, 3:])


def test_initial_scale_follows_the_options():
    def stddev(**kw):
        mixer = make_mixer(width=64, num_heads=4, max_length=8, **kw)
        params = jax.jit(init_params, static_argnums=0)(mixer, jax.random.key(0))
        return {name: float(p.std()) for name, p in params.items()}

    assert math.isclose(stddev()["query"], 0.02, rel_tol=0.05)
    assert math.isclose(stddev(num_layers=8)["out"], 0.02 / 4, rel_tol=0.05)
    assert math.isclose(stddev(init_stddev=0.0)["value"], 1 / 8, rel_tol=0.05)
    gate = stddev(init_stddev=0.1, mixer="gated_convolution")["gate"]
    assert math.isclose(gate, 0.1, rel_tol=0.05)


def test_window_cache_is_no_larger_than_the_window():
    mixer = make_mixer(width=8, num_heads=2, max_length=1000, mask="window", window=5)
    assert mixer.init_state(1, 1000, "float32")["k"].shape == (1, 5, 2, 4)
    assert mixer.init_state(1, 3, "float32")["k"].shape == (1, 3, 2, 4)


def test_sinks_are_kept_beside_the_window():
    sinks = {"mask": "window | causal & global", "window": 5, "global_tokens": 2}
    mixer = make_mixer(width=8, num_heads=2, max_length=1000, **sinks)
    state = mixer.init_state(1, 1000, "float32")
    assert state["k"].shape == (1, 7, 2, 4)
    params = drawn(mixer)
    extend = jax.jit(mixer.extend)
    for _ in range(20):
        state, _ = extend(params, state, jnp.ones((1, 1, 8)))
    assert sorted(state["positions"].tolist()) == [0, 1, 15, 16, 17, 18, 19]


def test_latent_state_is_the_latent():
    options = mixer_spec(
        width=64, num_heads=8, max_length=100, mixer="latent", latent_width=12, rope_width=4,
        position="rope",
    )  # fmt: skip
    mixer = options.make()
    # 16 numbers a token, where 8 heads of keys and values of 8 would be 128.
    assert state_bytes(mixer, 1, 100, "float32") == 100 * (12 + 4) * 4 + 100 * 4 + 4
