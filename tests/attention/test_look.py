"""What a mixer shows of itself is what it computes: weights times values make its output."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.errors import Unsupported
from research.attention.mixers import cross_attention
from research.attention.mixers.mixer import Mixer, init_params, read_values
from research.attention.options import make_mixer
from tests.attention.cases import CASES, PADDABLE, close, problem, some_padding, visible

OPAQUE = ("gru", "lstm")
LINEAR_TIME = (
    "linear",
    "performer",
    "based",
    "retention",
    "gated_linear",
    "state_space",
    "delta",
    "gated_delta",
)


def rebuilt(mixer, params, x, **kwargs):
    look = mixer.look(params, x, **kwargs)
    return look, mixer.merge(params, x, read_values(look.weights, look.values))


def opaque(mixer):
    """Whether a mixer leaves it to its base class to say that there is nothing to look at."""
    return type(mixer).look is Mixer.look


def test_only_gated_networks_have_nothing_to_look_at():
    without = {o.mixer for o in CASES.values() if opaque(make_mixer(o))}
    assert without == set(OPAQUE), "give a mixer `look` and `merge`, or name it in OPAQUE"


@pytest.mark.parametrize("name", CASES)
def test_weights_times_values_make_the_output(name):
    options = CASES[name]
    mixer, params, x, call = problem(options)
    if opaque(mixer):
        with pytest.raises(Unsupported, match="no weights to look at"):
            mixer.look(params, x)
        with pytest.raises(Unsupported, match="nothing to merge"):
            mixer.merge(params, x, x[:, :, None])
        return
    look, y = jax.jit(lambda p, x: rebuilt(mixer, p, x))(params, x)
    close(y, call(params, x))
    assert look.weights.dtype == jnp.float32
    assert look.weights.shape[0::2] == (len(x), options.max_length)
    # A weight where nothing can be seen would be a leak or a picture of one.
    hidden = ~visible(options)
    assert not np.asarray(look.weights)[:, :, hidden].any()


@pytest.mark.parametrize("name", [n for n, o in CASES.items() if o.mixer in PADDABLE])
def test_padding_is_looked_at_as_it_is_computed(name):
    options = CASES[name]
    mixer, params, x, _ = problem(options)

    @jax.jit
    def both(params, x):
        mask = some_padding(options)
        return *rebuilt(mixer, params, x, mask=mask), mixer(params, x, mask=mask)

    look, y, computed = both(params, x)
    close(y[1, :8], computed[1, :8])
    if options.mixer != "linformer":
        assert not np.asarray(look.weights)[1, :, :8, 8:].any()


@pytest.mark.parametrize("mixer_name", ["softmax", "latent"])
def test_scores_are_what_the_softmax_saw(mixer_name):
    options = next(o for o in CASES.values() if o.mixer == mixer_name)
    mixer, params, x, _ = problem(options)
    look = mixer.look(params, x)
    scores = np.where(visible(options), np.asarray(look.scores), -np.inf)
    scores -= scores.max(-1, keepdims=True)
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(look.weights), expected, atol=2e-6)


@pytest.mark.parametrize("mixer_name", LINEAR_TIME)
def test_implied_weights_are_derivatives_by_the_values(mixer_name):
    """The weight of s at t is what the head's output at t gains from the value at s."""
    options = next(o for o in CASES.values() if o.mixer == mixer_name)
    mixer, params, x, _ = problem(options)
    look = mixer.look(params, x)
    state = mixer.init_state(len(x), x.shape[1], x.dtype)
    read, v, _ = mixer.prepare(params, state, x)

    def first_channel(v):
        return mixer.recur(params, read, v, state["memory"], "recurrent")[1][0, :, 1, 0]

    slope = jax.jacobian(first_channel)(v)[:, 0, :, 1, 0]
    close(look.weights[0, 1], slope)


@pytest.mark.parametrize("extra", [{}, {"output_gate": True}, {"num_kv_heads": 2}])
def test_cross_attention_is_rebuilt_too(extra):
    options = replace(next(iter(CASES.values())), mask="full", position="none", **extra)
    layer = cross_attention.make(options, 10)
    params = {
        n: 0.5 * jax.random.normal(jax.random.key(i), p.shape)
        for i, (n, p) in enumerate(layer.parameters().items())
    }
    x = jax.random.normal(jax.random.key(1), (2, 5, options.width))
    memory = jax.random.normal(jax.random.key(2), (2, 7, 10))
    kept = layer.remember(params, memory)
    look = layer.look(params, x, kept)
    close(layer.merge(params, x, read_values(look.weights, look.values)), layer(params, x, memory))
    np.testing.assert_allclose(np.asarray(look.weights.sum(-1)), 1, atol=1e-5)


def test_look_in_bfloat16_has_wide_weights():
    options = next(o for o in CASES.values() if o.mixer == "softmax")
    mixer = make_mixer(options)
    params = init_params(mixer, jax.random.key(0))
    look = mixer.look(params, jnp.ones((1, 4, options.width), jnp.bfloat16))
    assert look.weights.dtype == jnp.float32
    assert look.values.dtype == jnp.bfloat16
