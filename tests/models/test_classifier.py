"""Classifiers: bodies and poolings against what they are by their definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.model import parameter_shapes
from research.models.registry import make_model
from research.training.schema import resolve
from tests import small

V, C, T = 9, 3, 6
LENGTHS = np.array([6, 4, 1])
TRANSFORMER = {
    "body": "transformer",
    "num_heads": 2,
    "feedforward": 12,
    "num_layers": 2,
    "use_bias": True,
}
CASES = {
    "bilstm attention": {},
    "bilstm mean": {"pooling": "mean", "num_layers": 2},
    "bilstm last": {"pooling": "last", "embedding_width": 6},
    "gru last": {"body": "lstm", "cell": "gru", "pooling": "last", "num_layers": 2},
    "lstm attention": {"body": "lstm"},
    "none mean": {"body": "none", "pooling": "mean"},
    "none attention": {"body": "none"},
    "class token": TRANSFORMER | {"pooling": "class_token"},
    "class token, learned": TRANSFORMER | {"pooling": "class_token", "position": "learned"},
    "first": TRANSFORMER
    | {"pooling": "first", "pooler": True, "embedding_norm": True, "token_types": 2},
    "transformer mean": TRANSFORMER | {"pooling": "mean", "position": "sinusoidal"},
    "transformer attention": TRANSFORMER | {"encoder": "mask=local, window=2"},
    "transformer last": TRANSFORMER | {"pooling": "last", "encoder": "mask=causal"},
}


def built(**model):
    config = resolve(small.rule(**{f"model__{k}": v for k, v in model.items()}))
    return make_model(config.model, V, 10, classes=C)


def some_batch(length=T, extra=0):
    """Sequences of 6, 4 and 1 tokens; what follows them is `extra`."""
    tokens = np.random.default_rng(0).integers(1, V, (len(LENGTHS), T))
    tokens = np.pad(tokens, ((0, 0), (0, length - T)))
    tokens = np.where(np.arange(length) < LENGTHS[:, None], tokens, extra)
    return {"inputs": jnp.asarray(tokens, jnp.int32), "length": jnp.asarray(LENGTHS, jnp.int32)}


@functools.cache  # so never to be called while tracing
def parameters(model):
    """Parameters so large that every part of the model shows."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: jnp.asarray(0.6 * rng.normal(size=p.shape), jnp.float32),
        parameter_shapes(model, some_batch()),
    )


@functools.partial(jax.jit, static_argnums=0)
def called(model, params, batch):
    """Logits (B, C) and weights (B, H, 1, T)."""
    return [model.apply({"params": params}, batch, method=m) for m in ("forward", "weights")]


@functools.cache
def model_of(case):
    return built(**CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_padding_changes_nothing(case):
    model = model_of(case)
    logits, weights = called(model, parameters(model), some_batch())
    longer, more = called(model, parameters(model), some_batch(9, extra=5))
    np.testing.assert_allclose(longer, logits, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(more[..., :T], weights, rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(more[..., T:], 0)
    assert logits.shape == (3, C) and logits.dtype == jnp.float32


@pytest.mark.parametrize("case", ["bilstm attention", "none mean", "transformer attention"])
def test_a_row_alone_is_the_same_row_unpadded(case):
    model = model_of(case)
    logits = called(model, parameters(model), some_batch())[0]
    tokens = np.asarray(some_batch()["inputs"])[1:2, :4]
    alone = {"inputs": tokens, "length": np.array([4], np.int32)}
    np.testing.assert_allclose(
        called(model, parameters(model), alone)[0][0], logits[1], rtol=2e-5, atol=2e-6
    )


@pytest.mark.parametrize("case", CASES)
def test_every_token_and_every_parameter_matters(case):
    model = model_of(case)
    params, batch = parameters(model), some_batch()

    def total(params, change):
        embeddings = model.apply(
            {"params": params}, batch, method=lambda m, b: m.embed(b["inputs"])
        )
        found = embeddings + change
        logits = model.apply({"params": params}, found, batch["length"], method="from_embeddings")
        return (logits * jnp.arange(1.0, C + 1)).sum(), logits

    change = np.zeros((3, T, model.config.embedding_width), np.float32)
    grad = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (by_parameter, by_token), logits = grad(params, change)
    np.testing.assert_allclose(logits, called(model, params, batch)[0], rtol=1e-4, atol=1e-6)
    there = np.arange(T) < LENGTHS[:, None]
    np.testing.assert_array_equal(np.abs(by_token).sum(-1) > 0, there)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(by_parameter))


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_pool(case):
    model = model_of(case)
    weights = called(model, parameters(model), some_batch())[1]
    heads = 1 if model.config.pooling in ("mean", "attention") else 0
    assert weights.shape == (3, heads, 1, T)
    if not heads:
        return
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    there = np.arange(T) < LENGTHS[:, None]
    np.testing.assert_array_equal(weights[:, 0, 0] > 0, there)
    equal = np.allclose(weights[:, 0, 0], there / LENGTHS[:, None])
    assert equal == (model.config.pooling == "mean")


def test_attention_over_embeddings_by_hand():
    model = model_of("none attention")
    params, batch = parameters(model), some_batch()
    logits, weights = called(model, params, batch)
    p, pool = jax.tree.map(np.asarray, params), jax.tree.map(np.asarray, params["pool"])
    for row, length in enumerate(LENGTHS):
        h = p["embed"]["embedding"][np.asarray(batch["inputs"])[row, :length]]
        scores = np.tanh(h @ pool["matrix"] + pool["matrix_bias"]) @ pool["vector"]
        a = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(weights[row, 0, 0, :length], a, rtol=1e-5)
        wanted = (a @ h) @ p["head"] + p["head_bias"]
        np.testing.assert_allclose(logits[row], wanted, rtol=1e-4, atol=1e-5)


def lstm(p, x):
    """States of an LSTM by its definition, one token after the other."""
    n = p["recurrent"].shape[0]
    h, c, out = np.zeros(n), np.zeros(n), []
    for token in x:
        gates = np.einsum("m,mgn->gn", token, p["input"]) + p["bias"]
        gates += np.einsum("m,mgn->gn", h, p["recurrent"])
        i, f, g, o = gates
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        out.append(h)
    return np.array(out)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_bidirectional_body_by_hand(pooling):
    model = built(embedding_width=6, pooling=pooling)
    params, batch = parameters(model), some_batch()
    logits = called(model, params, batch)[0]
    p = jax.tree.map(np.asarray, params)
    layer = p["networks"]["0"]
    for row, length in enumerate(LENGTHS):
        x = p["embed"]["embedding"][np.asarray(batch["inputs"])[row, :length]]
        forward, backward = lstm(layer["forward"], x), lstm(layer["backward"], x[::-1])
        pooled = {
            "last": np.concatenate([forward[-1], backward[-1]]),
            "mean": np.concatenate([forward.mean(0), backward.mean(0)]),
        }[pooling]
        np.testing.assert_allclose(logits[row], pooled @ p["head"] + p["head_bias"], rtol=1e-4)


@pytest.mark.parametrize("case", ["bilstm attention", "class token", "transformer attention"])
def test_a_population_is_its_members(case):
    model, batch = model_of(case), some_batch()
    many = [
        jax.tree.map(lambda p, s=s: np.float32(s) * np.asarray(p), parameters(model))
        for s in (1.0, 0.5)
    ]
    stacked = jax.tree.map(lambda *a: np.stack(a), *many)
    found = jax.jit(jax.vmap(lambda p: called(model, p, batch)[0]))(stacked)
    for lane, params in enumerate(many):
        np.testing.assert_allclose(found[lane], called(model, params, batch)[0], rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_what_parameters_and_states_are(case):
    model = model_of(case)
    shapes = parameter_shapes(model, some_batch())
    axes = model.parameter_axes(shapes)
    assert [len(own.names) for own in jax.tree.leaves(axes)] == [
        p.ndim for p in jax.tree.leaves(shapes)
    ]
    assert model.state_bytes(T) is None
    kind = {"transformer": "dense", "none": "none"}.get(model.config.body, "recurrent")
    assert model.implementation == kind


def test_dropout_and_dtype():
    model = built(dropout=0.5, dtype="bfloat16")
    params, batch = parameters(model), some_batch()

    @jax.jit
    def dropped(seed):
        options = {"deterministic": False, "rngs": {"dropout": jax.random.key(seed)}}
        return model.apply({"params": params}, batch, **options, method="forward")

    seen = [np.asarray(dropped(seed)) for seed in (0, 1)]
    assert (abs(seen[0] - seen[1]) > 0).all() and seen[0].dtype == jnp.float32
    precise = called(built(), params, batch)[0]
    np.testing.assert_allclose(called(model, params, batch)[0], precise, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ({"body": "cnn"}, ["model.body='cnn'", "bilstm"]),
        ({"pooling": "max"}, ["model.pooling='max'", "attention"]),
        ({"pooling": "class_token"}, ["model.pooling='class_token'", "'bilstm'"]),
        ({"pooling": "first"}, ["model.pooling='first'", "'bilstm'"]),
        ({"token_types": 2}, ["model.token_types=2", "does not read it"]),
        ({"embedding_norm": True}, ["model.embedding_norm=True", "does not read it"]),
        (
            TRANSFORMER | {"pooling": "first", "encoder": "mask=causal"},
            ["model.encoder='mask=causal'", "must look ahead"],
        ),
        ({"body": "none", "pooling": "last"}, ["model.pooling='last'", "'none'"]),
        (
            TRANSFORMER | {"pooling": "class_token", "encoder": "mask=causal"},
            ["model.encoder='mask=causal'", "must look ahead"],
        ),
        ({"width": 7}, ["model.width=7", "even"]),
        ({"cell": "rnn"}, ["model.cell='rnn'", "gru"]),
        ({"embedding_width": -1}, ["model.embedding_width=-1"]),
        ({"body": "none", "cell": "gru"}, ["model.cell='gru'", "does not read it"]),
        ({"body": "none", "embedding_width": 4}, ["model.embedding_width=4", "does not read it"]),
        ({"encoder": "mask=local, window=2"}, ["model.encoder=", "does not read it"]),
        ({"position": "alibi"}, ["model.position='alibi'", "does not read it"]),
        (TRANSFORMER | {"mask": "window"}, ["model.mask='window'", "does not read it"]),
        (TRANSFORMER | {"cell": "gru"}, ["model.cell='gru'", "does not read it"]),
        ({"attention": "dot"}, ["model.attention='dot'", "does not read it"]),
        ({"tie_embeddings": False}, ["model.tie_embeddings=False", "does not read it"]),
    ],
)
def test_what_does_not_fit_is_refused(model, parts):
    with pytest.raises(UserError) as error:
        built(**model)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["decoder", "recurrent", "speech"])
def test_other_models_do_not_read_its_keys(name):
    with pytest.raises(UserError, match="model.pooling='attention': .* does not read it"):
        small.model(name=name, pooling="attention")


def test_the_pooler_and_the_first_state_by_hand():
    """tanh(W h + b) of the first token's state, then the output layer."""
    options = TRANSFORMER | {"pooling": "first"}
    model, params, batch = built(pooler=True, **options), None, some_batch()
    params = parameters(model)
    rest = dict(params)
    pool = rest.pop("pool")
    states = built(**options).apply(
        {"params": rest}, model_embeddings(rest, batch), batch["length"], method="states"
    )[0]
    pooled = np.tanh(states[:, 0] @ pool["pooler"] + pool["pooler_bias"])
    expected = pooled @ params["head"] + params["head_bias"]
    np.testing.assert_allclose(called(model, params, batch)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_kind_of_token_is_added_to_its_embedding():
    options = TRANSFORMER | {"pooling": "mean"}
    model, batch = built(token_types=3, **options), some_batch()
    params = parameters(model)
    kinds = jnp.asarray(np.arange(batch["inputs"].size).reshape(batch["inputs"].shape) % 3)
    rest = {n: a for n, a in params.items() if n != "token_type"}
    x = model_embeddings(params, batch)

    def expected(kinds):
        moved = x + params["token_type"][kinds]
        return built(**options).apply(
            {"params": rest}, moved, batch["length"], method="from_embeddings"
        )

    found = called(model, params, batch | {"token_types": kinds})[0]
    np.testing.assert_allclose(found, expected(kinds), rtol=1e-4, atol=1e-4)
    found = called(model, params, batch)[0]
    np.testing.assert_allclose(found, expected(0 * kinds), rtol=1e-4, atol=1e-4)


def model_embeddings(params, batch):
    return params["embed"]["embedding"][batch["inputs"]]
