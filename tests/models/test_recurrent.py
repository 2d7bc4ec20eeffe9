"""Recurrent sequence-to-sequence models: one form against another, and what a part reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.parameters import Parameter
from research.errors import UserError
from research.models.recurrent import networks
from research.models.recurrent.language_model import ATTENTIONS
from research.models.registry import make_model
from tests import small

B, S, T, V, LENGTH = 3, 6, 4, 11, 8
LENGTHS, TARGETS = np.array([5, 4, 1]), np.array([4, 2, 3])
FIXED = ("fixed_initial", "fixed_every_step")
SOFTMAX = ("additive", "dot", "scaled_dot", "general", "concat", "cosine", "location", "coverage")
SMALL = {"name": "recurrent", "width": 8, "num_heads": 1, "num_layers": 1, "embedding_width": 6}
SMALL |= {"tie_embeddings": False}


def built(attention="additive", vocab=V, **model):
    keys = SMALL | model | {"attention": attention}
    return make_model(small.model(**keys), vocab, LENGTH)


def some_batch(length=S):
    """Sources of 5, 4 and 1 tokens, targets of 4, 2 and 3, padded with zeros."""
    rng = np.random.default_rng(0)
    source = rng.integers(3, V, (B, S)) * (np.arange(S) < LENGTHS[:, None])
    inputs = rng.integers(1, V, (B, T)) * (np.arange(T) < TARGETS[:, None])
    source = np.pad(source, ((0, 0), (0, length - S)))
    found = {"source": source, "source_length": LENGTHS, "inputs": inputs}
    return {name: jnp.asarray(a, jnp.int32) for name, a in found.items()}


@functools.cache  # so never to be called while tracing
def parameters(model):
    """Parameters so large that every part of the model shows."""
    shapes = jax.eval_shape(
        lambda b: model.init(jax.random.key(0), b, method="forward"), some_batch()
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda p: jnp.asarray(0.4 * rng.normal(size=p.shape), jnp.float32), shapes["params"]
    )


@functools.partial(jax.jit, static_argnums=0)
def called(model, params, batch):
    """Logits (B, T, V) and weights (B, H, T, S) of a whole batch."""
    return [model.apply({"params": params}, batch, method=m) for m in ("forward", "weights")]


@functools.partial(jax.jit, static_argnums=0)
def decoded(model, params, batch):
    """Logits (B, T, V) and weights (B, H, T, S) of one step after the other."""

    def apply(method, *args):
        return model.apply({"params": params}, *args, method=method)

    memory = apply("encode", batch["source"], batch["source_length"])

    def step(state, token):
        logits, state, weights = apply("step", memory, state, token)
        return state, (logits, weights)

    first = apply("init_state", memory, T)
    logits, weights = jax.lax.scan(step, first, batch["inputs"].T)[1]
    return jnp.swapaxes(logits, 0, 1), jnp.moveaxis(weights, 0, 2)


VARIANTS = {name: built(name) for name in ATTENTIONS}
VARIANTS |= {
    "gru": built(cell="gru"),
    "two layers": built("general", num_layers=2, width=6),
    "two layers of gru, nothing fed": built(cell="gru", num_layers=2, input_feeding=False),
    "location-aware, nothing fed": built("location_aware", input_feeding=False, filter_length=3),
    "two heads, tied": built(num_heads=2, tie_embeddings=True, embedding_width=0, use_bias=True),
    "two heads of general": built("general", num_heads=2, normalizer="softmax_sink"),
    "fixed for two layers of gru": built("fixed_every_step", cell="gru", num_layers=2),
    "narrow window": built("local_m", window=1),
    "narrow predicted window": built("local_p", predicted_window=1),
}
# Of what these have, others that are tested among the fast ones have each part.
OF_OTHERS = {
    "gru",
    "location-aware, nothing fed",
    "two heads of general",
    "fixed for two layers of gru",
    "narrow window",
}
variants = pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, id=name, marks=pytest.mark.slow if name in OF_OTHERS else ())
        for name, model in VARIANTS.items()
    ],
)


@variants
def test_one_step_after_the_other_equals_the_whole(model):
    params, batch = parameters(model), some_batch()
    logits, weights = called(model, params, batch)
    assert weights.shape == (
        B,
        model.config.decoder_attention.num_heads if model.config.decoder_attention else 0,
        T,
        S,
    )
    assert logits.dtype == weights.dtype == jnp.float32
    one_by_one = decoded(model, params, batch)
    np.testing.assert_allclose(one_by_one[0], logits, atol=3e-5)
    np.testing.assert_allclose(one_by_one[1], weights, atol=1e-5)
    # No two positions and no two rows are the same.
    flat = np.asarray(logits).reshape(B * T, V)
    assert np.abs(flat[:, None] - flat)[~np.eye(B * T, dtype=bool)].max(-1).min() > 1e-4


@variants
def test_padding_changes_nothing(model):
    params, batch = parameters(model), some_batch()
    there = np.arange(S) < LENGTHS[:, None]
    logits, weights = called(model, params, batch)
    other = {**batch, "source": np.where(there, batch["source"], 5)}
    assert np.array_equal(called(model, params, other)[0], logits)
    assert not np.any(np.swapaxes(weights, 1, 3)[~there])


@pytest.mark.parametrize("name", ["local_p", "location", "monotonic_chunkwise"])
def test_how_much_padding_there_is_changes_nothing(name):
    model = VARIANTS[name]
    few, many = (called(model, parameters(model), some_batch(length)) for length in (S, LENGTH))
    np.testing.assert_allclose(many[0], few[0], atol=2e-5)
    np.testing.assert_allclose(many[1][..., :S], few[1], atol=1e-6)


@pytest.mark.parametrize("name", SOFTMAX)
def test_weights_are_a_distribution_over_real_tokens(name):
    _, weights = called(VARIANTS[name], parameters(VARIANTS[name]), some_batch())
    weights = np.asarray(weights)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    there = np.arange(S) < LENGTHS[:, None]
    assert (np.swapaxes(weights, 1, 3)[there] > 0).all()


@pytest.mark.parametrize("name", ["coverage", *FIXED])
def test_gradient_reaches_exactly_what_is_there(name):
    """Through embeddings: every token of the batch is a word of its own."""
    model, words = built(name, vocab=B * (S + T)), np.arange(B * (S + T))
    source, inputs = words[: B * S].reshape(B, S), words[B * S :].reshape(B, T)
    batch = some_batch() | {"source": jnp.asarray(source), "inputs": jnp.asarray(inputs)}

    def logits(params):
        found = model.apply({"params": params}, batch, method="forward")
        return found[1, TARGETS[1] - 1].sum()

    gradient = jax.jit(jax.grad(logits))(parameters(model))["embedding"]
    reached = np.flatnonzero(np.abs(gradient).max(-1))
    assert reached.tolist() == [*source[1, : LENGTHS[1]], *inputs[1, : TARGETS[1]]]


def test_a_fixed_vector_is_all_that_is_kept_of_a_source():
    sizes = {}
    for name in ("additive", *FIXED):
        model = VARIANTS[name]
        memory = jax.eval_shape(
            lambda p, b, m=model: m.apply(
                {"params": p}, b["source"], b["source_length"], method="encode"
            ),
            parameters(model),
            some_batch(),
        )
        kept = {k: a for k, a in memory.items() if k != "valid"}
        assert any(S in a.shape for a in jax.tree.leaves(kept)) == (name == "additive")
        sizes[name] = model.state_bytes(5), model.state_bytes(7)
    # An LSTM's two states of 8, and the vector; additive: a state, a value and hidden of 8 a token,
    # the states and h~.
    assert sizes["fixed_initial"] == (4 * 16, 4 * 16)
    assert sizes["fixed_every_step"] == (4 * 24, 4 * 24)
    assert sizes["additive"] == (4 * (24 + 5 * 16), 4 * (24 + 7 * 16))


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_vector_reads_nothing_but_last_states(name):
    """However the states between change, with the last ones as they are, so are the logits."""
    sizes, params = VARIANTS[name].config.sizes, parameters(VARIANTS[name])["decoder"]
    rng = np.random.default_rng(0)
    shapes = {"states": (B, S, 8), "h": (B, 8), "c": (B, 8), "x": (B, T, 6)}
    drawn = {k: jnp.asarray(rng.normal(size=n), jnp.float32) for k, n in shapes.items()}

    @jax.jit
    def gradients(drawn):
        def read(drawn):
            last = ({"h": drawn["h"], "c": drawn["c"]},)
            memory = networks.make_memory(
                sizes, params, drawn["states"], last, jnp.asarray(LENGTHS)
            )
            return networks.decode(sizes, params, memory, drawn["x"], lambda a: a)[0].sum()

        return jax.grad(read)(drawn)

    found = {k: np.abs(a) for k, a in gradients(drawn).items()}
    assert not found["states"].any()
    assert min(found["h"].min(), found["c"].min()) > 0


def test_only_several_heads_or_multi_head_have_projections():
    names = {
        name: set(VARIANTS[name].config.decoder_attention.parameters())
        for name in ("dot", "general")
    }
    assert names == {"dot": set(), "general": {"alignment_score_weight"}}
    projected = {"query", "key", "value", "out"}
    for name in ("multi_head", "two heads of general"):
        assert projected <= set(VARIANTS[name].config.decoder_attention.parameters())


def test_weights_that_remember_differ_from_those_that_do_not():
    """With the coverage or location matrix at zero the weights are additive attention's."""
    for name, part in (("coverage", "coverage"), ("location_aware", "location")):
        model = VARIANTS[name]
        params = parameters(model)
        attention = params["decoder"]["attention"]
        blind = {**attention, f"alignment_{part}": jnp.zeros_like(attention[f"alignment_{part}"])}
        blind = {**params, "decoder": {**params["decoder"], "attention": blind}}
        found, other = (called(model, p, some_batch())[1] for p in (params, blind))
        np.testing.assert_allclose(found[:, :, 0], other[:, :, 0], atol=1e-5)
        assert np.abs(found - other)[:2].max() > 1e-2


def test_dropout_is_on_only_in_training():
    model = built("general", num_layers=2, width=6, dropout=0.5)
    params, batch = parameters(model), some_batch()

    @jax.jit
    def logits(key):
        return model.apply(
            {"params": params}, batch, deterministic=False, rngs={"dropout": key}, method="forward"
        )

    keys = jax.random.split(jax.random.key(0), 3)
    assert np.array_equal(logits(keys[0]), logits(keys[0]))
    assert np.abs(logits(keys[0]) - logits(keys[1])).max() > 0.1
    plain = called(VARIANTS["two layers"], params, batch)[0]
    assert np.array_equal(called(model, params, batch)[0], plain)


@pytest.mark.parametrize("name", ["additive", "two layers of gru, nothing fed"])
def test_bfloat16_is_near_float32_and_keeps_wide_states(name):
    options = {} if name == "additive" else {"cell": "gru", "num_layers": 2, "input_feeding": False}
    model, exact = built(dtype="bfloat16", **options), VARIANTS[name]
    params, batch = parameters(exact), some_batch()
    expected, low = (np.asarray(called(m, params, batch)[0]) for m in (exact, model))
    assert np.sqrt(np.mean((low - expected) ** 2)) < 0.04 * expected.std()
    memory = jax.eval_shape(
        lambda: model.apply(
            {"params": params}, batch["source"], batch["source_length"], method="encode"
        )
    )
    assert {a.dtype.name for a in jax.tree.leaves(memory["initial"])} == {"float32"}
    logits, _ = decoded(model, params, batch)
    np.testing.assert_allclose(logits, low, atol=0.05)


@pytest.mark.parametrize("name", ["additive", "fixed for two layers of gru", "two heads, tied"])
def test_parameters_are_described(name):
    model = VARIANTS[name]
    params = jax.eval_shape(
        lambda: model.init(jax.random.key(0), some_batch(), method="forward")["params"]
    )
    axes = model.parameter_axes(params)
    described = jax.tree.map(lambda p, a: len(p.shape) == len(a.names), params, axes)
    assert all(jax.tree.leaves(described))
    assert axes["embedding"].names == ("vocab", "width")
    assert hash(model) == hash(model.clone())
    assert not any(isinstance(p, Parameter) for p in jax.tree.leaves(params))
    assert model.implementation == "recurrent"


def test_members_are_independent():
    model, batch = VARIANTS["coverage"], some_batch()
    params = parameters(model)
    half = jax.tree.map(lambda p: 0.5 * np.asarray(p), params)
    stacked = jax.tree.map(lambda *p: np.stack(p), params, half)
    both = jax.jit(jax.vmap(lambda p: model.apply({"params": p}, batch, method="forward")))(stacked)
    np.testing.assert_allclose(both[0], called(model, params, batch)[0], atol=2e-5)
    np.testing.assert_allclose(both[1], called(model, half, batch)[0], atol=2e-5)


REFUSED = [
    ({"attention": "aditive"}, "model.attention='aditive' is unknown. Did you mean 'additive'?"),
    ({"cell": "rnn"}, "model.cell='rnn' is unknown"),
    ({"width": 7}, "model.width=7 must be even"),
    ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
    ({"tie_embeddings": True}, "model.embedding_width=6 must be model.width=8 or 0"),
    ({"embedding_width": -1}, "model.embedding_width=-1 must be at least 0"),
    ({"dropout": 1.0}, "model.dropout=1.0 must be in"),
    ({"pattern": ("mask=window",)}, "model.pattern="),
    ({"implementation": "blockwise"}, "model.implementation='blockwise'"),
    ({"filter_length": 3}, "model.filter_length=3: model.name='recurrent' does not read it"),
    ({"attention": "location_aware", "filter_length": 4}, "filter_length = 4: must be odd"),
    (
        {"talking_heads": True},
        "model.attention='additive': a recurrent decoder cannot use talking_heads",
    ),
    (
        {"output_gate": True},
        "a recurrent decoder cannot use output_gate, which is for self, cross-attention",
    ),
    ({"num_heads": 3}, "num_heads = 3"),
    ({"normalizer": "sofmax"}, "did you mean 'softmax'"),
]


@pytest.mark.parametrize(("extra", "says"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(extra, says):
    with pytest.raises(UserError) as caught:
        built(**extra)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_attention_says_where_it_is_from():
    for name, attention in ATTENTIONS.items():
        assert any(c.isdigit() for c in attention.source), name
