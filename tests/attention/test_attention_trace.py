"""What a mixer shows of itself: scores, weights, and what the weights of a recurrence mean.

That weights times values make the output is asked of every case in test_mixers.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.mixers import cross_attention
from research.attention.mixers.mixer import weighted_values
from research.attention.spec import mixer_spec
from tests.attention.cases import (
    CASES,
    HEADS,
    LENGTH,
    WIDTH,
    close,
    drawn,
    numbers,
    problem,
    visible,
)

LINEAR_TIME = (
    "linear",
    "performer",
    "based",
    "retention",
    "gated_linear",
    "state_space",
    "delta",
    "gated_delta",
    "kimi_delta",
)


@pytest.mark.parametrize("mixer_name", ["softmax", "latent"])
def test_scores_are_what_the_softmax_saw(mixer_name):
    options = next(o for o in CASES.values() if o.name == mixer_name)
    mixer, params, x, _ = problem(options)
    look = jax.jit(mixer.attention_trace)(params, x)
    scores = np.where(visible(options), np.asarray(look.scores), -np.inf)
    scores -= scores.max(-1, keepdims=True)
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(look.weights), expected, atol=2e-6)


@pytest.mark.parametrize("mixer_name", LINEAR_TIME)
def test_implied_weights_are_derivatives_by_the_values(mixer_name):
    """The weight of s at t is what the head's output at t gains from the value at s."""
    options = next(o for o in CASES.values() if o.name == mixer_name)
    mixer, params, x, _ = problem(options)

    @jax.jit
    def run(params, x):
        state = mixer.init_state(len(x), x.shape[1], x.dtype)
        read, v, _ = mixer.prepare(params, state, x, None)

        def first_channel(v):
            return mixer.recur(params, read, v, state["memory"], "recurrent")[1][0, :, 1, 0]

        return mixer.attention_trace(params, x).weights[0, 1], jax.jacobian(first_channel)(v)[
            :, 0, :, 1, 0
        ]

    weights, slope = run(params, x)
    close(weights, slope)


@pytest.mark.parametrize("extra", [{}, {"output_gate": True}, {"num_kv_heads": 2}])
def test_cross_attention_is_rebuilt_too(extra):
    sizes = {"width": WIDTH, "num_heads": HEADS, "max_length": LENGTH}
    spec = mixer_spec(**sizes, mask="full", **extra)
    layer = cross_attention.make_cross(spec.options, spec.context, 10)
    draw = np.random.default_rng(0)
    shapes = (2, 5, WIDTH), (2, 7, 10)
    x, memory = (draw.normal(size=shape).astype(np.float32) for shape in shapes)

    @jax.jit
    def run(params, x, memory):
        kept = layer.project_memory(params, memory)
        look = layer.attention_trace(params, x, kept)
        rebuilt = layer.merge(params, x, weighted_values(look.weights, look.values))
        return look.weights, rebuilt, layer(params, x, memory)

    weights, rebuilt, whole = run(drawn(layer), x, memory)
    close(rebuilt, whole)
    np.testing.assert_allclose(np.asarray(weights).sum(-1), 1, atol=1e-5)


def test_look_in_bfloat16_has_wide_weights():
    options = next(o for o in CASES.values() if o.name == "softmax")
    mixer = options.make()
    x = jax.ShapeDtypeStruct((1, 4, options.context.width), jnp.bfloat16)
    look = jax.eval_shape(mixer.attention_trace, numbers(mixer), x)
    assert look.weights.dtype == jnp.float32
    assert look.values.dtype == jnp.bfloat16
