"""Primitives of all models, by hand: lookups, sines, norms and activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.parts.positions import sinusoidal
from research.models import primitives
from research.models.primitives import ACTIVATIONS, MAX_PRODUCT_ROWS, Norm, lookup, sinusoids
from research.models.registry import make_model
from tests import small

V, T = 16, 8
TOKENS = np.random.default_rng(0).permutation(V)[None, :T].astype(np.int32)
SWAPPED = TOKENS[:, [2, 1, 0, *range(3, T)]]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_takes_the_same_rows(monkeypatch, dtype):
    table = jax.random.normal(jax.random.key(0), (7, 5)).astype(dtype)
    tokens = jax.random.randint(jax.random.key(1), (3, 40), 0, 6)  # the last row is never taken
    weights = jax.random.normal(jax.random.key(2), (3, 40, 5)).astype(dtype)

    def found(platform):
        monkeypatch.setattr(primitives, "platform", lambda: platform)

        def loss(table):
            rows = lookup(table, tokens)
            return (rows * weights).astype(jnp.float32).sum(), rows

        (_, rows), gradient = jax.value_and_grad(loss, has_aux=True)(table)
        return rows, np.asarray(gradient, np.float32)

    (indexed, scattered), (multiplied, added) = found("cpu"), found("gpu")
    np.testing.assert_array_equal(indexed, table[tokens])
    np.testing.assert_array_equal(multiplied, indexed)
    np.testing.assert_allclose(added, scattered, atol=1e-5 if dtype == jnp.float32 else 0.3)
    assert not added[-1].any() and added[:6].any(-1).all()


@pytest.mark.parametrize(
    ("platform", "rows", "tokens", "products"),
    [
        ("cpu", 10, 100, 0),
        ("gpu", 10, 100, 1),
        ("tpu", 10, 100, 1),
        ("gpu", 10, 9, 0),  # a step of decoding: nothing is added, and a row is less than the table
        ("gpu", MAX_PRODUCT_ROWS + 1, 4 * MAX_PRODUCT_ROWS, 0),
    ],
)
def test_a_product_is_taken_where_it_is_cheaper(monkeypatch, platform, rows, tokens, products):
    monkeypatch.setattr(primitives, "platform", lambda: platform)
    table, tokens = jnp.zeros((rows, 4)), jnp.zeros(tokens, jnp.int32)
    text = str(jax.make_jaxpr(lambda t: lookup(t, tokens))(table))
    assert text.count("dot_general") == products and text.count("gather[") == 1 - products


@pytest.mark.parametrize(("kind", "epsilon"), [("layernorm", 1e-5), ("rmsnorm", 0.5)])
def test_norm_by_hand(kind, epsilon):
    x = np.random.default_rng(0).normal(2.0, 3.0, (3, 8))
    params = {"scale": np.arange(1.0, 9.0), "bias": np.arange(8.0)}
    norm = Norm(kind, use_bias=True, epsilon=epsilon)
    found = norm.apply({"params": params}, jnp.asarray(x, jnp.float32))
    centred = x - x.mean(-1, keepdims=True) if kind == "layernorm" else x
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    np.testing.assert_allclose(found, wanted * params["scale"] + params["bias"], rtol=1e-5)


def test_activations_by_hand():
    from math import erf, exp, pi, sqrt, tanh

    by_hand = {
        "gelu": lambda x: x * (1 + erf(x / sqrt(2))) / 2,
        "gelu_tanh": lambda x: x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2,
        "relu": lambda x: max(x, 0.0),
        "swiglu": lambda x: x / (1 + exp(-x)),
    }
    by_hand |= {"geglu": by_hand["gelu_tanh"], "silu": by_hand["swiglu"]}
    assert by_hand.keys() == ACTIVATIONS.keys()
    points = np.linspace(-3, 3, 13)
    for name, f in by_hand.items():
        found = ACTIVATIONS[name](jnp.asarray(points, jnp.float32))
        np.testing.assert_allclose(found, [f(x) for x in points], rtol=1e-4, atol=1e-6)


# Sines that are added to embeddings: as large as in their paper, and seen at every size.


def rms(x):
    return np.sqrt(np.square(x).mean())


def test_sines_and_embeddings_have_the_proportion_of_their_paper():
    """Embeddings of 1 / sqrt(width) times sqrt(width), plus sines of unit size."""
    for width in (16, 64, 256):
        found = sinusoids(20, width, width**-0.5) * width**0.5
        np.testing.assert_allclose(found, sinusoidal(20, width), rtol=1e-6)


@pytest.mark.parametrize("stddev", [0.0, 0.005, 0.02, 0.2, 1.0, 5.0])
def test_sines_are_not_smaller_than_embeddings_or_what_these_grow_to(stddev):
    for width in (16, 64, 256):
        size = rms(sinusoids(200, width, stddev))
        assert size == pytest.approx(max(stddev, width**-0.5) / 2**0.5, rel=1e-5)


def decoder(**model):
    return small.recall(**model), lambda tokens: {"inputs": tokens}


def classifier(**model):
    config = small.rule(model__body="transformer", model__pooling="mean", **model)
    return config, lambda tokens: {"inputs": tokens, "length": jnp.array([T])}


def encoder_decoder(**model):
    """The source is swapped."""
    config = small.recall(model__name="encoder_decoder", **model)
    start = jnp.ones((1, 1), jnp.int32)
    return config, lambda tokens: {
        "source": tokens,
        "source_length": jnp.array([T]),
        "inputs": start,
    }


@pytest.mark.parametrize("build", [decoder, classifier, encoder_decoder])
@pytest.mark.parametrize("stddev", [0.0, 0.02, 1.0])
def test_order_is_read_off_sines_whatever_embeddings_start_from(build, stddev):
    """Two tokens change places: the answer after all of them does, too, but without positions."""
    changes = {}
    for position in ("none", "sinusoidal"):
        config, batch = build(
            model__position=position,
            model__num_layers=1,
            model__width=32,
            model__num_heads=2,
            model__feedforward=32,
            model__init_stddev=0.0,
            model__embedding_stddev=stddev,
        )
        model = make_model(config.model, V, T, classes=2 * (build is classifier))
        forward = jax.jit(lambda p, b, m=model: m.apply({"params": p}, b, method="forward"))
        params = model.init(jax.random.key(0), batch(TOKENS), method="forward")["params"]

        def trained(path, leaf, stddev=stddev):
            table = "embedding" in path[-1].key
            return leaf / rms(leaf) * max(stddev, 32**-0.5) if table else leaf

        params = jax.tree_util.tree_map_with_path(trained, params)
        found = [forward(params, batch(tokens)) for tokens in (TOKENS, SWAPPED)]
        before, after = (logits if build is classifier else logits[:, -1] for logits in found)
        changes[position] = rms(after - before) / rms(before)
    assert changes["none"] < 1e-5
    assert changes["sinusoidal"] > 0.02
