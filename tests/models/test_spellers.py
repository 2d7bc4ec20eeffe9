"""Spellers: one form against the other, what they see, and what they keep."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.registry import read_model
from research.models.speech import spellers
from research.models.speech.spellers import make_recurrent_speller, make_transformer_speller
from tests import small

B, S, T, V, N, LENGTH = 3, 7, 4, 11, 8, 6
LENGTHS = np.array([7, 4, 1])
SMALL = {"width": N, "num_layers": 1, "num_heads": 1}
BLOCKS = {"feedforward": 8, "position": "none"}
UNITED = {"embedding_width": 6, "tie_embeddings": False}


def config_of(kind, vocab=V, **model):
    blocks = BLOCKS if kind == "transformer" else {}
    options = {"name": "speech", "speller": kind} | SMALL | blocks | model
    model = read_model(small.model(**options))
    make = make_recurrent_speller if kind == "recurrent" else make_transformer_speller
    return make(model, vocab, LENGTH, {})[0]


def states(length=S):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, S, N)) * (np.arange(S) < LENGTHS[:, None])[..., None]
    return jnp.asarray(np.pad(x, ((0, 0), (0, length - S), (0, 0))), jnp.float32)


def inputs():
    """No token twice in a row."""
    rng = np.random.default_rng(3)
    return jnp.asarray([rng.permutation(np.arange(1, V))[:T] for _ in range(B)], jnp.int32)


def whole(speller, x, tokens):
    """Logits and weights of a whole batch."""
    memory = speller.make_memory(x, jnp.asarray(LENGTHS))
    return speller.decode(memory, tokens, True, with_weights=True)


@functools.cache  # so never to be called while tracing
def parameters(config):
    """Parameters so large that every part of the speller shows."""
    shapes = jax.eval_shape(
        lambda x, t: spellers.make(config).init(jax.random.key(0), x, t, method=whole),
        states(),
        inputs(),
    )["params"]
    rng = np.random.default_rng(1)

    def draw(path, p):
        a = np.float32(0.4 * rng.normal(size=p.shape))
        return a + np.float32(path[-1].key == "scale")

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


@functools.partial(jax.jit, static_argnums=0)
def decoded(config, params, x, tokens):
    return spellers.make(config).apply({"params": params}, x, tokens, method=whole)


@functools.partial(jax.jit, static_argnums=0)
def stepped(config, params, x, tokens):
    """Logits and weights of one token after the other."""

    def apply(method, *args):
        return spellers.make(config).apply({"params": params}, *args, method=method)

    memory = apply("make_memory", x, jnp.asarray(LENGTHS))

    def step(state, token):
        logits, state, weights = apply("step", memory, state, token)
        return state, (logits, weights)

    first = apply("init_state", memory, T)
    logits, weights = jax.lax.scan(step, first, tokens.T)[1]
    return jnp.swapaxes(logits, 0, 1), jnp.moveaxis(weights, 0, 2)


RECURRENT = ("additive", "location_aware", "monotonic", "dot", "coverage", "fixed_every_step")
VARIANTS = {name: config_of("recurrent", attention=name) for name in RECURRENT}
VARIANTS |= {
    "multi_head": config_of("recurrent", attention="multi_head", num_heads=2, **UNITED),
    "two layers of gru, nothing fed": config_of(
        "recurrent", cell="gru", num_layers=2, attention="general", input_feeding=False
    ),
    "window": config_of("recurrent", attention="location_aware", median_window=1),
    "window of heads": config_of(
        "recurrent", attention="multi_head", num_heads=2, median_window=1, input_feeding=False
    ),
    "transformer": config_of("transformer", num_layers=2, num_heads=2, position="rope"),
    "sinusoidal": config_of("transformer", position="sinusoidal", tie_embeddings=False),
    "learned": config_of("transformer", position="learned", cross="score=additive"),
    "pattern": config_of("transformer", num_layers=2, pattern=("mask=window, window=2", "")),
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
# Others have each part of these: median windows, tables of their own, attention without memory.
OF_OTHERS = {"dot", "window of heads", "sinusoidal"}


def heads_of(config):
    if isinstance(config, spellers.TransformerSpellerConfig):
        return config.decoder.num_layers * config.cross.num_heads
    return config.decoder_attention.num_heads if config.decoder_attention else 0


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in OF_OTHERS else ()) for n in VARIANTS],
)
def test_one_step_after_the_other_equals_the_whole(name):
    config = VARIANTS[name]
    params = parameters(config)
    logits, weights = decoded(config, params, states(), inputs())
    assert weights.shape == (B, heads_of(config), T, S)
    assert logits.dtype == weights.dtype == jnp.float32
    one_by_one = stepped(config, params, states(), inputs())
    np.testing.assert_allclose(one_by_one[0], logits, atol=3e-5)
    np.testing.assert_allclose(one_by_one[1], weights, atol=1e-5)
    # No two positions are the same.
    flat = np.asarray(logits).reshape(B * T, V)
    assert np.abs(flat[:, None] - flat)[~np.eye(B * T, dtype=bool)].max(-1).min() > 1e-4


@pytest.mark.parametrize("name", ["additive", "monotonic", "window of heads", "transformer"])
def test_padding_leaves_no_trace(name):
    config = VARIANTS[name]
    params = parameters(config)
    logits, weights = decoded(config, params, states(), inputs())
    more, wider = decoded(config, params, states(S + 4), inputs())
    np.testing.assert_allclose(more, logits, atol=2e-5)
    np.testing.assert_allclose(wider[..., :S], weights, atol=1e-6)
    there = np.arange(S) < LENGTHS[:, None]
    assert not np.any(np.swapaxes(weights, 1, 3)[~there])
    assert not np.any(wider[..., S:])


@pytest.mark.parametrize("name", ["location_aware", "transformer"])
def test_gradient_reaches_the_inputs_before_and_no_others(name):
    """Through embeddings: every token of the batch is a word of its own."""
    own = {"attention": name} if name == "location_aware" else {"num_layers": 2}
    kind = "recurrent" if name == "location_aware" else "transformer"
    config = config_of(kind, vocab=B * T, **own, tie_embeddings=False)
    words, params = jnp.arange(B * T).reshape(B, T), parameters(config)

    @jax.jit
    def gradient(params):
        def logits(params):
            apply = spellers.make(config).apply
            return apply({"params": params}, states(), words, method=whole)[0][1, 2].sum()

        return jax.grad(logits)(params)["embedding"]

    reached = np.flatnonzero(np.abs(gradient(params)).max(-1))
    assert reached.tolist() == words[1, :3].tolist()


@pytest.mark.parametrize("name", ["additive", "fixed_every_step", "transformer"])
def test_gradient_reaches_all_states_that_are_there(name):
    config = VARIANTS[name]
    params = parameters(config)
    there = (np.arange(S) < LENGTHS[:, None])[..., None]

    @jax.jit
    def gradient(x):
        # The mean is over a sum: a listener's states are zeros behind the end.
        return jax.grad(lambda x: decoded(config, params, x * there, inputs())[0][:, -1].sum())(x)

    found = np.abs(gradient(states())).max(-1)
    assert np.array_equal(found > 0, there[..., 0])
    if name == "fixed_every_step":
        # The mean has the same share of each.
        np.testing.assert_allclose(found[0], found[0, 0], rtol=1e-5)


def test_the_window_is_around_the_median_of_the_step_before():
    _, weights = decoded(VARIANTS["window"], parameters(VARIANTS["window"]), states(), inputs())
    _, free = decoded(
        VARIANTS["location_aware"], parameters(VARIANTS["window"]), states(), inputs()
    )
    weights = np.asarray(weights)[:, 0]
    np.testing.assert_allclose(weights[:, 0], free[:, 0, 0], atol=1e-6)
    middle = (2 * weights.cumsum(-1) >= weights.sum(-1, keepdims=True)).argmax(-1)
    far = np.abs(np.arange(S) - middle[:, :-1, None]) > 1
    assert not weights[:, 1:][far].any()
    assert np.asarray(free)[:, 0, 1:][far].any()
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


@variants
def test_parameters_are_described(config):
    params = parameters(config)
    axes = spellers.parameter_axes(config, params)
    described = jax.tree.map(lambda p, a: p.ndim == len(a.names), params, axes)
    assert all(jax.tree.leaves(described))
    assert "encoder" not in params
    assert hash(config) == hash(config.__class__(**vars(config)))


def test_bytes_that_are_kept():
    """Of 5 tokens and states, counted out; the LSTM's states are h and c, h~ is fed."""
    lstm = 3 * N
    sizes = {name: spellers.state_bytes(VARIANTS[name], N, 5) for name in VARIANTS}
    assert sizes["dot"] == 4 * (lstm + 5 * N)
    # A value and its share of the energy to each state, of a head as wide as the model.
    assert sizes["additive"] == 4 * (lstm + 5 * 2 * N)
    # The weights before, twice in a window.
    assert sizes["location_aware"] == sizes["additive"] + 4 * 5
    assert sizes["window"] == sizes["additive"] + 4 * 2 * 5
    assert sizes["fixed_every_step"] == 4 * (lstm - N + N)
    # Keys and values of tokens and states in two layers; positions of the cache.
    assert sizes["transformer"] >= 4 * (2 * 2 * 5 * N + 2 * 2 * 5 * N)


def test_dropout_is_on_only_in_training():
    for kind, model in (("recurrent", {"attention": "dot"}), ("transformer", {})):
        plain, config = (config_of(kind, dropout=d, **model) for d in (0.0, 0.5))
        params = parameters(plain)

        @jax.jit
        def train(key, config=config, params=params):
            def run(speller):
                memory = speller.make_memory(states(), jnp.asarray(LENGTHS))
                return speller.decode(memory, inputs(), False)[0]

            speller = spellers.make(config)
            return speller.apply({"params": params}, rngs={"dropout": key}, method=run)

        one, two = (train(key) for key in jax.random.split(jax.random.key(0)))
        assert np.abs(one - two).max() > 0.1
        expected = decoded(plain, params, states(), inputs())[0]
        assert np.array_equal(decoded(config, params, states(), inputs())[0], expected)


REFUSED = [
    (
        "recurrent",
        {"attention": "location"},
        "model.attention='location' has parameters for a fixed",
    ),
    ("recurrent", {"attention": "aditive"}, "Did you mean 'additive'?"),
    ("recurrent", {"median_window": -1}, "model.median_window=-1 must be at least 0"),
    (
        "recurrent",
        {"median_window": 2, "attention": "monotonic_chunkwise"},
        "model.median_window=2: model.attention='monotonic_chunkwise' only moves forward",
    ),
    ("recurrent", {"median_window": 2, "attention": "local_p"}, "a window of its own"),
    (
        "recurrent",
        {"median_window": 2, "attention": "fixed_initial"},
        "does not attend",
    ),
    ("recurrent", {"pattern": ("",)}, "model.pattern="),
    ("transformer", {"mask": "full"}, "looks ahead, and a speller must not"),
    ("transformer", {"cross": "position=learned"}, "model.cross='position=learned'"),
    ("transformer", {"cross": "score=location"}, "has parameters whose size depends"),
]


@pytest.mark.parametrize(("kind", "extra", "says"), REFUSED, ids=[str(r[1]) for r in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(kind, extra, says):
    with pytest.raises(UserError) as caught:
        config_of(kind, **extra)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
