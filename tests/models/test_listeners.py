"""Listeners: against plain loops, blind to padding, and their parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from research.errors import UserError
from research.models.block import FeedForward
from research.models.primitives import Norm
from research.models.registry import read_model
from research.models.speech.conformer import ConformerBlock, Convolution, depthwise
from research.models.speech.listeners import (
    Listener,
    bilstm_parameters,
    init_function,
    make_listener,
    parameter_axes,
    subsampled,
)
from tests import small

B, S, F, N = 3, 13, 6, 8
LENGTHS = np.array([13, 6, 1])
SMALL = {"width": N, "num_layers": 1}
BLOCKS = {"num_heads": 2, "feedforward": 8, "position": "none"}


def config_of(**model):
    blocks = BLOCKS if model.get("listener", "bilstm") != "bilstm" else {}
    if "position" in model.get("encoder", ""):
        blocks = {k: v for k, v in blocks.items() if k != "position"}
    deltas = SMALL | blocks | {"init_stddev": 0.0} | model
    return make_listener(read_model(small.model(name="speech", **deltas)), 9, {})


def frames(length=S):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, S, F)) * (np.arange(S) < LENGTHS[:, None])[..., None]
    return jnp.asarray(np.pad(x, ((0, 0), (0, length - S), (0, 0))), jnp.float32)


@functools.cache  # so never to be called while tracing
def parameters(config):
    """Parameters so large that every part of the listener shows."""
    shapes = jax.eval_shape(
        lambda x: Listener(config).init(jax.random.key(0), x, jnp.asarray(LENGTHS), True), frames()
    )
    rng = np.random.default_rng(1)

    def draw(path, p):
        a = np.float32(0.4 * rng.normal(size=p.shape))
        return a + np.float32(path[-1].key == "scale")

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes["params"]))


@functools.partial(jax.jit, static_argnums=0)
def heard(config, params, x):
    return Listener(config).apply({"params": params}, x, jnp.asarray(LENGTHS), True)


@functools.partial(jax.jit, static_argnums=0)
def heard_and_gradient(config, params, x):
    """As `heard`, and the gradient of a row's last state with respect to all frames."""

    def total(x):
        states, lengths = found = heard(config, params, x)
        last = states[jnp.arange(B), lengths - 1]
        return (last * jnp.arange(1, 1 + config.width)).sum(), found

    return jax.grad(total, has_aux=True)(x)


KINDS = {
    "bilstm": config_of(encoder_layers=2),
    "no subsampling": config_of(levels=0, width=6),
    "pyramid": config_of(subsampling="pyramid", encoder_layers=4, levels=2),
    "transformer": config_of(listener="transformer", position="sinusoidal"),
    "transformer with biases": config_of(
        listener="transformer", encoder="mask=full, position=alibi", levels=1, encoder_layers=2
    ),
    "causal transformer": config_of(
        listener="transformer", encoder="mixer=gated_delta, position=none", levels=1
    ),
    "conformer": config_of(listener="conformer", filter_conv=5, encoder_layers=2),
    "conformer with rope": config_of(
        listener="conformer", position="rope", filter_conv=3, use_bias=True, norm="layernorm"
    ),
    "causal conformer": config_of(
        listener="conformer", encoder="mask=causal, position=none", filter_conv=3, levels=0
    ),
}
KINDS = {name: config for name, (config, _) in KINDS.items()}
# Others have their parts: a conformer with rope, and a causal one that takes every frame.
OF_OTHERS = {"conformer", "no subsampling"}
kinds = pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks=pytest.mark.slow if name in OF_OTHERS else ())
        for name, config in KINDS.items()
    ],
)


@kinds
def test_shapes_and_lengths(config):
    _, (states, lengths) = heard_and_gradient(config, parameters(config), frames())
    expected = [int(np.ceil(n / 2**config.levels)) for n in LENGTHS]
    assert lengths.tolist() == expected
    assert states.shape == (B, subsampled(config.levels, S), config.width)
    there = np.arange(states.shape[1]) < np.asarray(expected)[:, None]
    assert not np.asarray(states)[~there].any()
    # No two states are the same.
    flat = np.asarray(states)[there]
    apart = np.abs(flat[:, None] - flat).max(-1)[~np.eye(len(flat), dtype=bool)]
    assert apart.min() > 1e-3


@kinds
def test_padding_leaves_no_trace(config):
    params, x = parameters(config), frames()
    _, (states, lengths) = heard_and_gradient(config, params, x)
    there = (np.arange(S) < LENGTHS[:, None])[..., None]
    noisy = heard_and_gradient(config, params, np.where(there, x, np.float32(7.0)))[1][0]
    assert np.array_equal(noisy, states)
    more, same = heard(config, params, frames(S + 6))
    assert np.array_equal(same, lengths)
    np.testing.assert_allclose(more[:, : states.shape[1]], states, atol=2e-5)
    assert not np.asarray(more[:, states.shape[1] :]).any()


@kinds
def test_gradient_reaches_all_frames_and_no_padding(config):
    """Of a row's last state: what looks to both sides, or back, has every frame to reach it."""
    gradient, _ = heard_and_gradient(config, parameters(config), frames())
    reached = np.abs(gradient).max(-1) > 0
    assert np.array_equal(reached, np.arange(S) < LENGTHS[:, None])


# Against plain loops.


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(p, xs):
    """States after each of xs, written down gate by gate (input, forget, candidate, output)."""
    h = c = np.zeros(p["bias"].shape[1])
    found = []
    for x in xs:
        i, f, g, o = (
            x @ p["input"][:, k] + h @ p["recurrent"][:, k] + p["bias"][k] for k in range(4)
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        found.append(h)
    return found


def test_pyramid_equals_loops():
    config = KINDS["pyramid"]
    params = jax.tree.map(np.asarray, parameters(config))["bilstm"]
    _, (states, _) = heard_and_gradient(config, parameters(config), frames())
    for row, length in enumerate(LENGTHS):
        xs = list(np.asarray(frames())[row, :length])
        for layer in range(4):
            if layer in (1, 2):
                xs += [np.zeros_like(xs[0])] * (len(xs) % 2)
                xs = [np.concatenate(pair) for pair in zip(xs[::2], xs[1::2], strict=True)]
            ahead, back = (params[str(layer)][d] for d in ("forward", "backward"))
            both = zip(lstm(ahead, xs), lstm(back, xs[::-1])[::-1], strict=True)
            xs = [np.concatenate(pair) for pair in both]
        assert len(xs) == -(-length // 4)
        np.testing.assert_allclose(states[row, : len(xs)], xs, atol=1e-5)


def test_convolutions_equal_loops():
    """What dropout gets is what the layers read."""
    config = KINDS["transformer"]
    params = jax.tree.map(np.asarray, parameters(config))
    row, length = 1, LENGTHS[1]
    x = np.asarray(frames())[row, :length, :, None]
    for level in range(2):
        kernel, bias = params[f"convolution_{level}"], params[f"convolution_{level}_bias"]
        time, bands = (-(-n // 2) for n in x.shape[:2])
        y = np.zeros((time, bands, kernel.shape[-1]))
        for t, f in np.ndindex(time, bands):
            for i, j in np.ndindex(3, 3):
                at = 2 * t + i - 1, 2 * f + j - 1
                if 0 <= at[0] < x.shape[0] and 0 <= at[1] < x.shape[1]:
                    y[t, f] += x[at] @ kernel[i, j]
        x = np.maximum(y + bias, 0)
    expected = x.reshape(len(x), -1) @ params["input"] + params["input_bias"]

    captured = jax.jit(
        lambda p, x: Listener(config).apply(
            {"params": p}, x, jnp.asarray(LENGTHS), True, capture_intermediates=_is_dropout
        )[1]
    )(parameters(config), frames())
    found = captured["intermediates"]["Dropout_0"]["__call__"][0]
    np.testing.assert_allclose(found[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def _is_dropout(module, _):
    return type(module).__name__ == "Dropout"


def test_depthwise_is_a_correlation_of_each_channel():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 9, 3)), rng.normal(size=(5, 3))
    found = depthwise(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    for row, channel in np.ndindex(2, 3):
        expected = np.correlate(np.pad(x[row, :, channel], 2), kernel[:, channel], "valid")
        np.testing.assert_allclose(found[row, :, channel], expected, atol=1e-5)
    # It is linear in either argument, so differences are exact but for rounding.
    arguments = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    check_grads(depthwise, arguments, order=1, modes=["rev"], eps=1.0)


def conformer_parts():
    """Parameters of one block, its input, and how it is called."""
    config = KINDS["conformer with rope"]
    params = parameters(config)["stack"]["layers"]
    one = jax.tree.map(lambda a: a[0], params)
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(B, 7, N)), jnp.float32)
    block = ConformerBlock(config.layers, config.layers.mixers[0], 3, True)
    valid = jnp.ones((B, 7), bool)
    call = jax.jit(lambda p: block.apply({"params": p}, x, valid, None)[0])
    return config.layers, one, x, valid, call


def test_conformer_convolution_equals_numpy():
    layers, params, x, valid, _ = conformer_parts()
    own = params["convolution"]
    found = jax.jit(lambda p: Convolution(layers, 3).apply({"params": p}, x, valid))(own)
    x, p = np.asarray(x), jax.tree.map(np.asarray, own)
    y = (x @ p["in"] + p["in_bias"]) * sigmoid(x @ p["gate"] + p["gate_bias"])
    y = np.pad(y, ((0, 0), (1, 1), (0, 0)))
    y = sum(y[:, n : n + 7] * p["depthwise"][n] for n in range(3)) + p["depthwise_bias"]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    y = y * p["norm"]["scale"] + p["norm"]["bias"]
    expected = (y * sigmoid(y)) @ p["out"] + p["out_bias"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_conformer_block_is_what_its_parts_add():
    """With all but one sublayer silent: x plus half of each feed-forward, plus the others."""
    layers, params, x, valid, call = conformer_parts()
    norm = Norm(layers.norm, layers.use_bias, layers.norm_epsilon)
    silent = jax.tree_util.tree_map_with_path(
        lambda path, p: p * (path[-1].key not in ("out", "out_bias")), params
    )
    last = params["norm5"]
    quiet = norm.apply({"params": last}, x)
    np.testing.assert_allclose(call(silent), quiet, atol=1e-5)
    for number, name in ((1, "feedforward1"), (4, "feedforward4"), (3, "convolution")):
        y = norm.apply({"params": params[f"norm{number}"]}, x)
        if name == "convolution":
            y = Convolution(layers, 3).apply({"params": params[name]}, y, valid)
        else:
            y = 0.5 * FeedForward(layers).apply({"params": params[name]}, y)
        expected = norm.apply({"params": last}, x + y)
        np.testing.assert_allclose(call({**silent, name: params[name]}), expected, atol=1e-5)
        assert np.abs(expected - quiet).max() > 0.1


@kinds
def test_parameters_are_described(config):
    params = parameters(config)
    axes = parameter_axes(config, params)
    described = jax.tree.map(lambda p, a: p.ndim == len(a.names), params, axes)
    assert all(jax.tree.leaves(described))
    assert hash(config) == hash(config.__class__(**vars(config)))


def test_first_states_have_about_unit_scale():
    """Initial matrices keep the size of what they read, whatever the number of levels."""
    config = config_of(listener="transformer", levels=3, width=64)[0]
    x = jax.random.normal(jax.random.key(0), (4, 64, 40))

    @jax.jit
    def first(key):
        _, seen = Listener(config).init_with_output(
            key, x, jnp.full(4, 64), True, capture_intermediates=_is_dropout, mutable=True
        )
        return seen["intermediates"]["Dropout_0"]["__call__"][0]

    assert 0.3 < float(first(jax.random.key(1)).std()) < 3


def test_directions_are_drawn_apart():
    arrays = init_function(bilstm_parameters(KINDS["pyramid"], F))(jax.random.key(0))
    ahead, back = (arrays["0"][d]["input"] for d in ("forward", "backward"))
    assert ahead.shape == (F, 4, N // 2)
    assert not np.array_equal(ahead, back)
    assert arrays["1"]["forward"]["input"].shape == (2 * N, 4, N // 2)


REFUSED = [
    ({"listener": "lstm"}, "model.listener='lstm' is unknown. Did you mean 'bilstm'?"),
    ({"subsampling": "pyramids"}, "model.subsampling='pyramids' is unknown"),
    ({"levels": 4}, "model.levels=4 must be from 0 to 3"),
    ({"levels": -1}, "model.levels=-1 must be from 0 to 3"),
    ({"encoder_layers": -1}, "model.encoder_layers=-1 must be at least 0"),
    ({"width": 7, "num_heads": 1}, "model.width=7 must be even"),
    ({"listener": "conformer", "filter_conv": 4}, "model.filter_conv=4 must be odd"),
    (
        {"subsampling": "pyramid", "listener": "conformer"},
        "model.subsampling='pyramid' needs model.listener='bilstm'",
    ),
    (
        {"subsampling": "pyramid", "encoder_layers": 2},
        "model.levels=2: a pyramid of that many halvings needs model.encoder_layers to be at least "
        "3, and it is 2.",
    ),
    (
        {"listener": "transformer", "position": "learned"},
        "model.encoder='mask=full': position 'learned' has parameters for a fixed number",
    ),
    (
        {"listener": "conformer", "encoder": "mixer=linformer, position=none"},
        "mixer 'linformer' has parameters whose size",
    ),
    (
        {"listener": "transformer", "encoder": "score=synthesizer_dense"},
        "score 'synthesizer_dense' has parameters whose size",
    ),
    ({"listener": "transformer", "encoder": "mask=ful"}, "did you mean 'full'"),
]


@pytest.mark.parametrize(("extra", "says"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(extra, says):
    with pytest.raises(UserError) as caught:
        config_of(**extra)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
