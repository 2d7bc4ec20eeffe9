"""The decoder: causal, and the same in every form it can be run in."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.block import Block
from research.models.primitives import Norm
from research.models.registry import make_model
from research.models.transformer import init_state
from tests import small

VOCAB, LENGTH = 16, 12


def decoder(length=LENGTH, vocab=VOCAB, **model):
    deltas = {f"model__{k}": v for k, v in model.items()}
    return make_model(small.recall(**deltas).model, vocab, length)


def some_tokens(length=LENGTH, batch=2, vocab=VOCAB):
    return jnp.asarray(np.random.default_rng(0).integers(0, vocab, (batch, length)), jnp.int32)


def parameters(model, scale=8.0):
    """Parameters so large that every part of the model shows in the logits, biases included."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), some_tokens())["params"]
    leaves, tree = jax.tree.flatten(shapes)
    generator = np.random.default_rng(1)
    drawn = [np.float32(generator.normal(size=leaf.shape) * (0.02 * scale)) for leaf in leaves]
    # Norm scales are around one.
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: p + 1 if path[-1].key == "scale" else p, jax.tree.unflatten(tree, drawn)
    )
    return jax.device_put(params)


def logits_of(model, params, tokens):
    return jax.jit(lambda p, t: model.apply({"params": p}, t)[0])(params, tokens)


# Causality.

# What the model adds to a mixer; the mixers themselves have a suite of their own.
VARIANTS = {
    "softmax": {},
    "window": {"mask": "window", "window": 3},
    "learned": {"position": "learned"},
    "sinusoidal": {"position": "sinusoidal"},
    "canon": {"canon": "acd", "activation": "swiglu"},
    "parallel": {"parallel_residual": True, "norm_placement": "sandwich", "use_bias": True},
    "grouped": {"num_heads": 4, "num_kv_heads": 1},
    "capped": {"softcap": 5.0, "score": "cosine", "use_bias": True},
    "linear": {"mixer": "linear", "position": "none"},
    "hybrid": {"pattern": ("mixer=gated_delta, position=none", "position=alibi")},
    "short convolution": {
        "mixer": "gated_convolution",
        "position": "sinusoidal",
        "filter_length": 3,
    },
}


# Masks, tables of positions and mixers are what could look ahead.
LOOKING = ("softmax", "window", "learned", "hybrid", "short convolution")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in LOOKING else pytest.mark.slow) for n in VARIANTS]
)
def test_no_position_sees_a_later_one(name):
    """By the gradient of every logit with respect to every embedded token."""
    # Untied: a tied table also reaches every logit as output matrix.
    layers = len(VARIANTS[name].get("pattern", "1"))
    model = decoder(num_layers=layers, tie_embeddings=False, **VARIANTS[name])
    params = parameters(model)

    def logits(embedding):
        # One row of the table per position, so that positions can be told apart.
        changed = {**params, "embedding": embedding}
        return model.apply({"params": changed}, jnp.arange(LENGTH)[None])[0][0].sum(-1)

    jacobian = np.abs(jax.jit(jax.jacrev(logits))(params["embedding"])[:, :LENGTH]).sum(-1)
    assert (np.triu(jacobian, 1) == 0).all()
    assert (np.diag(jacobian) > 0).all()
    if name not in ("window", "short convolution"):
        assert (jacobian[np.tril_indices(LENGTH)] > 0).all(), "earlier positions are seen"
    else:
        assert (np.tril(jacobian, -3) == 0).all(), "and no further than the window"


# The same function in every form.


# One token and several by turns, in every variant; all at once where much and little is kept.
CHUNKED = [(name, (1, 5, 1, 5)) for name in VARIANTS] + [("softmax", (12,)), ("hybrid", (12,))]
MORE = [(name, chunks) for name in VARIANTS for chunks in ((12,), (1, 4, 1, 3, 2, 1))]


@pytest.mark.parametrize(
    ("name", "chunks"), CHUNKED + [pytest.param(*m, marks=pytest.mark.slow) for m in MORE]
)
def test_decoding_in_chunks_equals_the_whole(name, chunks):
    model = decoder(**VARIANTS[name])
    params, tokens = parameters(model), some_tokens()
    whole = logits_of(model, params, tokens)
    extend = jax.jit(lambda p, t, s: model.apply({"params": p}, t, s))
    state, found, start = init_state(model.config, 2, LENGTH), [], 0
    for size in chunks:
        logits, state = extend(params, tokens[:, start : start + size], state)
        found.append(logits)
        start += size
    assert start == LENGTH and state["step"] == LENGTH
    np.testing.assert_allclose(np.concatenate(found, 1), whole, rtol=2e-4, atol=2e-4)


def test_state_size_is_that_of_the_state():
    model = decoder(num_heads=4, num_kv_heads=2, num_layers=3, dtype="bfloat16")
    # k and v of 2 heads of 2 numbers of 2 bytes, and int32 positions and step, in 3 layers.
    assert model.state_bytes(10) == 3 * (2 * 10 * 2 * 2 * 2 + 10 * 4 + 4)
    linear = decoder(mixer="linear", position="none")
    assert linear.state_bytes(10) == linear.state_bytes(1000) == 2 * 2 * (4 * 4 + 4) * 4


def test_scanned_layers_equal_layers_one_by_one():
    model = decoder(num_layers=3)
    params, tokens = parameters(model), some_tokens()

    @jax.jit
    def one_by_one(params):
        x = params["embedding"][tokens]
        block = Block(model.config, model.config.mixers[0], True)
        for i in range(3):
            layer = jax.tree.map(lambda a, i=i: a[i], params["layers"]["0"])
            x, _ = block.apply({"params": layer}, x, None)
        x = Norm("rmsnorm", False, 1e-5).apply({"params": params["norm"]}, x)
        return x @ params["embedding"].T

    found = logits_of(model, params, tokens)
    np.testing.assert_allclose(found, one_by_one(params), rtol=1e-5, atol=1e-5)


def test_norms_of_queries_and_keys_have_the_models_epsilon():
    (mixer,) = decoder(qk_norm="rms", norm_epsilon=1e-3).config.mixers
    assert (mixer.qk_norm, mixer.norm_epsilon) == ("rms", 1e-3)


def test_recomputing_layers_changes_no_gradient():
    tokens, found = some_tokens(), []
    for remat in (False, True):
        model = decoder(remat=remat)
        params = parameters(model)
        loss = lambda p, m=model: jnp.sin(m.apply({"params": p}, tokens)[0]).sum()  # noqa: E731
        found.append(jax.jit(jax.grad(loss))(params))
        text = str(jax.make_jaxpr(jax.grad(loss))(params))
        assert ("remat" in text or "checkpoint" in text) == remat
    for plain, recomputed in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(plain, recomputed, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close_to_float32():
    tokens, plain = some_tokens(), decoder()
    params = parameters(plain, scale=3.0)
    exact = logits_of(plain, params, tokens)
    rough = logits_of(decoder(dtype="bfloat16"), params, tokens)
    assert rough.dtype == jnp.float32
    error = np.abs(np.asarray(rough) - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.03, error
    init = jax.eval_shape(decoder(dtype="bfloat16").init, jax.random.key(0), tokens)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {jnp.dtype("float32")}


def test_dropout():
    model = decoder(dropout=0.4)
    params, tokens = parameters(model, scale=1.0), some_tokens()

    @jax.jit
    def dropped(key):
        return model.apply({"params": params}, tokens, deterministic=False, rngs={"dropout": key})[
            0
        ]

    off = logits_of(model, params, tokens)
    np.testing.assert_array_equal(off, logits_of(decoder(), params, tokens))
    one, two = dropped(jax.random.key(0)), dropped(jax.random.key(1))
    np.testing.assert_array_equal(one, dropped(jax.random.key(0)))
    assert (one != two).mean() > 0.9 and (one != off).mean() > 0.9


def test_dropout_keeps_the_mean_of_what_layers_add_and_differs_between_layers():
    model = decoder(dropout=0.4, num_layers=2, feedforward=0, use_bias=True)
    params = jax.tree.map(jnp.zeros_like, parameters(model))
    params["embedding"] = jnp.zeros((VOCAB, 8))
    # Every layer adds 1 to each channel: its output bias.
    params["layers"]["0"]["mixer"]["out_bias"] = jnp.ones((2, 8))

    def last_layer(key):
        seen = []

        def listen(call, arguments, options, context):
            if context.module.name == "norm":
                seen.append(arguments[0])
            return call(*arguments, **options)

        with nn.intercept_methods(listen):
            model.apply(
                {"params": params}, some_tokens(), deterministic=False, rngs={"dropout": key}
            )
        return seen[0]

    x = jax.jit(jax.vmap(last_layer))(jax.random.split(jax.random.key(0), 200))
    values, counts = np.unique(np.round(np.asarray(x) * 0.6, 3), return_counts=True)
    # Each layer adds 1 / 0.6 with probability 0.6, and independently of the other.
    np.testing.assert_array_equal(values, [0.0, 1.0, 2.0])
    np.testing.assert_allclose(counts / counts.sum(), [0.16, 0.48, 0.36], atol=0.01)
    np.testing.assert_allclose(x.mean(), 2.0, rtol=0.01)


# Initial values.


def test_initial_values():
    model = decoder(width=64, num_layers=8, feedforward=256, use_bias=True, activation="swiglu")
    params = jax.jit(model.init)(jax.random.key(0), some_tokens())["params"]
    residual = 0.02 / 4  # 8 layers add 16 times
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = jax.tree_util.keystr(path)
        if "scale" in where:
            assert (leaf == 1).all(), where
        elif "bias" in where:
            assert (leaf == 0).all(), where
        else:
            wanted = residual if "'out'" in where else 0.02
            np.testing.assert_allclose(leaf.std(), wanted, rtol=0.1, err_msg=where)
    first, second = (params["layers"]["0"]["mixer"]["query"][i] for i in (0, 1))
    assert (first != second).all(), "layers start from different values"


def test_initial_values_by_fan_in():
    model = decoder(width=64, num_layers=8, feedforward=256, init_stddev=0.0, tie_embeddings=False)
    layers = jax.jit(model.init)(jax.random.key(0), some_tokens())["params"]["layers"]["0"]
    np.testing.assert_allclose(layers["feedforward"]["in"].std(), 1 / 8, rtol=0.05)
    np.testing.assert_allclose(layers["mixer"]["query"].std(), 1 / 8, rtol=0.05)
    # Smaller by the number of additions, as in the other case.
    np.testing.assert_allclose(layers["mixer"]["out"].std(), 1 / 8 / 4, rtol=0.05)
    np.testing.assert_allclose(layers["feedforward"]["out"].std(), 1 / 16 / 4, rtol=0.05)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"activation": "geru"}, "model.activation='geru' is unknown. Did you mean 'gelu'?"),
        ({"norm": "layrnorm"}, "Did you mean 'layernorm'?"),
        ({"dtype": "float16"}, "Allowed: bfloat16, float32"),
        ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
        ({"feedforward": -1}, "model.feedforward=-1 must be at least 0"),
        ({"feedforward": 0, "canon": "ad"}, "model.canon='ad' has a layer at the feed-forward"),
        ({"dropout": 1.0}, "model.dropout=1.0 must be in [0, 1)"),
        ({"num_heads": 3}, "model.num_heads = 3"),
        ({"num_heads": 4, "num_kv_heads": 3}, "model.num_kv_heads = 3"),
        ({"mask": "window"}, "model.window = 0"),
        ({"mixer": "linear", "position": "rope"}, "model.position = 'rope'"),
        ({"implementation": "recurrent"}, "model.implementation = 'recurrent'"),
    ],
)
def test_what_does_not_fit_is_named(model, message):
    with pytest.raises(UserError) as error:
        decoder(**model)
    assert message in str(error.value)
