"""Models of speech: what they find, against plain loops, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.decoding.beam_search import SHARED, batch_axes
from research.errors import UserError
from research.models.registry import make_model
from research.tasks.task import BOS, EOS, PAD
from tests import small

B, S, F, T, V, LENGTH = 3, 11, 5, 5, 9, 6
ROOM = min(2 * T, LENGTH)
"""Tokens that greedy decoding may find."""
LENGTHS = np.array([11, 6, 1])
SMALL = {
    "name": "speech",
    "width": 8,
    "num_layers": 1,
    "num_heads": 1,
    "levels": 1,
    "init_stddev": 0.0,
    "embedding_stddev": 0.5,
}


def built(**model):
    keys = SMALL | model
    if keys.get("speller") != "transformer":
        keys = {"attention": "location_aware"} | keys
    if {keys.get("speller"), keys.get("listener")} - {None, "recurrent", "bilstm"}:
        keys = {"feedforward": 8, "position": "none"} | keys
    return make_model(small.model(**keys), V, LENGTH)


def some_batch(length=S):
    """Frames of three rows; targets of 4, 2 and 1 tokens, end tokens included."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, S, F)) * (np.arange(S) < LENGTHS[:, None])[..., None]
    words = rng.integers(3, V, (B, T))
    inputs, targets = np.zeros((B, T), int), np.full((B, T), -1)
    for row, number in enumerate((4, 2, 1)):
        inputs[row, 0], inputs[row, 1:number] = BOS, words[row, : number - 1]
        targets[row, :number] = [*words[row, : number - 1], EOS]
    return {
        "source": jnp.asarray(np.pad(x, ((0, 0), (0, length - S), (0, 0))), jnp.float32),
        "source_length": jnp.asarray(LENGTHS, jnp.int32),
        "inputs": jnp.asarray(inputs, jnp.int32),
        "targets": jnp.asarray(targets, jnp.int32),
    }


@functools.cache  # so never to be called while tracing
def parameters(model, seed=1):
    """Parameters so large that every part of the model shows."""
    shapes = jax.eval_shape(
        lambda b: model.init(jax.random.key(0), b, method="forward"), some_batch()
    )["params"]
    rng = np.random.default_rng(seed)

    def draw(path, p):
        a = np.float32(0.6 * rng.normal(size=p.shape))
        return a + np.float32(path[-1].key == "scale")

    return jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))


@functools.partial(jax.jit, static_argnums=(0, 3))
def called(model, params, batch, method="forward"):
    return model.apply({"params": params}, batch, method=method)


@functools.partial(jax.jit, static_argnums=0)
def encoded(model, params, batch):
    args = batch["source"], batch["source_length"]
    return model.apply({"params": params}, *args, method="encode")


MODELS = {
    "listen, attend and spell": built(),
    "pyramid": built(subsampling="pyramid", encoder_layers=2, attention="additive"),
    "joint": built(ctc_weight=0.3, listener="conformer", filter_conv=3, median_window=2),
    "transformers": built(listener="transformer", speller="transformer", position="sinusoidal"),
    "joint transformers": built(
        listener="transformer", speller="transformer", ctc_weight=0.5, num_heads=2, num_layers=2
    ),
    "ctc": built(ctc_weight=1.0),
}


def each(names):
    """Tests each of the models; that of transformers, of which another has CTC beside, slowly."""
    slow = {"transformers": pytest.mark.slow}
    cases = [pytest.param(MODELS[n], id=n, marks=slow.get(n, ())) for n in names]
    return pytest.mark.parametrize("model", cases)


models, spelling = each(MODELS), each(name for name in MODELS if name != "ctc")


@models
def test_what_a_batch_becomes(model):
    c, states = model.config, model.subsampled(S)
    found = called(model, parameters(model), some_batch())
    assert states == (S + 1) // 2
    assert found.ctc_length.tolist() == [(n + 1) // 2 for n in LENGTHS]
    assert found.ctc_length.dtype == jnp.int32
    assert float(found.ctc_weight) == pytest.approx(c.ctc_weight)
    assert found.labelling.dtype == jnp.int32
    if c.speller is None:
        assert found.logits is None
        assert found.labelling.shape == (B, states)
    else:
        assert found.logits.shape == (B, T, V)
        assert found.logits.dtype == jnp.float32
        assert found.labelling.shape == (B, ROOM)
    if not c.ctc_weight:
        assert found.ctc is None
        return
    assert found.ctc.shape == (B, states, V)
    assert found.ctc.dtype == jnp.float32
    assert (np.asarray(found.ctc)[..., [BOS, EOS]] == -1e9).all()
    assert np.abs(np.asarray(found.ctc)[..., [PAD, *range(3, V)]]).max() < 1e3


@models
def test_padding_leaves_no_trace(model):
    params = parameters(model)
    few, many = (called(model, params, some_batch(n)) for n in (S, S + 6))
    there = np.arange(model.subsampled(S)) < np.asarray(few.ctc_length)[:, None]
    assert np.array_equal(many.ctc_length, few.ctc_length)
    if few.logits is not None:
        np.testing.assert_allclose(many.logits, few.logits, atol=5e-5)
        assert np.array_equal(many.labelling, few.labelling)
    if few.ctc is not None:
        shorter = many.ctc[:, : few.ctc.shape[1]]
        np.testing.assert_allclose(shorter[there], few.ctc[there], atol=5e-5)


@models
def test_padding_has_no_gradient(model):
    """Of an objective as tasks have it, whatever weight the parts have."""
    params, batch = parameters(model), some_batch()
    labels = np.where(np.asarray(batch["targets"]) > EOS, batch["targets"], PAD)

    @jax.jit
    def gradient(x):
        def objective(x):
            found = model.apply({"params": params}, {**batch, "source": x}, method="forward")
            total = 0.0
            if found.logits is not None:
                total += jnp.where(batch["targets"][..., None] >= 0, found.logits, 0).sum()
            if found.ctc is not None:
                padding = jnp.arange(found.ctc.shape[1]) >= found.ctc_length[:, None]
                blank = (labels == PAD).astype(jnp.float32)
                total += optax.ctc_loss(found.ctc, 1.0 * padding, labels, blank)[:2].sum()
            return total

        return jax.grad(objective)(x)

    found = np.abs(gradient(batch["source"])).max(-1)
    assert np.isfinite(found).all()
    there = np.arange(S) < LENGTHS[:, None]
    assert not found[~there].any()
    assert (found[:2][there[:2]] > 0).all()


@functools.partial(jax.jit, static_argnums=0)
def stepped(model, params, memory, state, token):
    return model.apply({"params": params}, memory, state, token, method="step")


def step_by_step(model, params, batch):
    """Labellings of a loop in Python."""
    memory = encoded(model, params, batch)
    state = model.apply({"params": params}, memory, ROOM, method="init_state")
    found, token, going = [[] for _ in range(B)], [BOS] * B, [True] * B
    for _ in range(ROOM):
        logits, state, _ = stepped(model, params, memory, state, jnp.asarray(token, jnp.int32))
        token = (np.asarray(logits)[:, EOS:].argmax(-1) + EOS).tolist()
        for row in range(B):
            going[row] = going[row] and token[row] != EOS
            if going[row]:
                found[row].append(token[row])
    return found


@spelling
def test_labelling_equals_a_loop(model):
    ends, word = set(), EOS
    for seed in (1, 1, 2, 3):
        params = parameters(model, seed)
        # The second time a word that was found means the end.
        table = np.array(params["speller"]["embedding"])
        table[[EOS, word]] = table[[word, EOS]]
        params = {**params, "speller": {**params["speller"], "embedding": table}}
        labelling = np.asarray(called(model, params, some_batch()).labelling)
        expected = step_by_step(model, params, some_batch())
        assert [row[row != PAD].tolist() for row in labelling] == expected
        for row, tokens in zip(labelling, expected, strict=True):
            assert not row[len(tokens) :].any()
            ends.add(len(tokens))
        word = max(labelling[0].max(), EOS)
    assert len(ends) > 1


def test_labelling_of_ctc_is_the_collapsed_path():
    model = MODELS["ctc"]
    found = called(model, parameters(model), some_batch())
    lengths = set()
    for row, length in enumerate(np.asarray(found.ctc_length)):
        path = np.asarray(found.ctc)[row, :length].argmax(-1).tolist()
        merged = [a for a, b in zip(path, [None, *path], strict=False) if a != b]
        labels = [a for a in merged if a != PAD]
        assert np.asarray(found.labelling)[row].tolist() == labels + [PAD] * (
            found.labelling.shape[1] - len(labels)
        )
        lengths.add(len(labels))
    assert max(lengths) > 1


def test_labelling_is_found_only_without_dropout():
    for name in ("listen, attend and spell", "ctc"):
        model = MODELS[name]
        params = parameters(model)
        shapes = jax.eval_shape(
            lambda b, m=model, p=params: m.apply(
                {"params": p}, b, deterministic=False, method="forward"
            ),
            some_batch(),
        )
        assert shapes.labelling is None


@spelling
def test_one_step_after_the_other_equals_the_whole(model):
    params, batch = parameters(model), some_batch()
    logits = called(model, params, batch).logits
    weights = called(model, params, batch, "weights")
    memory = encoded(model, params, batch)

    @jax.jit
    def run(memory):
        apply = functools.partial(model.apply, {"params": params})

        def step(state, token):
            logits, state, weights = apply(memory, state, token, method="step")
            return state, (logits, weights)

        first = apply(memory, T, method="init_state")
        return jax.lax.scan(step, first, batch["inputs"].T)[1]

    found, read = run(memory)
    np.testing.assert_allclose(np.swapaxes(found, 0, 1), logits, atol=5e-5)
    np.testing.assert_allclose(np.moveaxis(np.asarray(read), 0, 2), weights, atol=1e-5)
    assert weights.shape[2:] == (T, model.subsampled(S))


@pytest.mark.parametrize("name", ["joint", "joint transformers", "ctc"])
def test_memory_has_what_ctc_says(name):
    model, batch = MODELS[name], some_batch()
    params = parameters(model)
    memory, found = encoded(model, params, batch), called(model, params, batch)
    log_probs, lengths = model.apply({"params": params}, memory, method="ctc")
    assert np.array_equal(lengths, found.ctc_length)
    assert np.array_equal(memory["valid"].sum(-1), lengths)
    np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(log_probs, jax.nn.log_softmax(found.ctc), atol=1e-5)
    assert log_probs.dtype == jnp.float32


@spelling
def test_every_leaf_has_the_batch_or_is_shared(model):
    params = parameters(model)

    def kept(size):
        x, lengths = jnp.zeros((size, S, F)), jnp.full((size,), S)
        memory = model.apply({"params": params}, x, lengths, method="encode")
        return memory, model.apply({"params": params}, memory, LENGTH, method="init_state")

    memory, _ = batch_axes(kept)
    assert SHARED not in jax.tree.leaves(memory)


@models
def test_parameters_are_described(model):
    params = parameters(model)
    axes = model.parameter_axes(params)
    described = jax.tree.map(lambda p, a: p.ndim == len(a.names), params, axes)
    assert all(jax.tree.leaves(described))
    assert hash(model) == hash(model.clone())


def test_only_what_is_used_has_parameters():
    names = {name: set(parameters(model)) for name, model in MODELS.items()}
    assert names["ctc"] == {"listener", "ctc", "ctc_bias"}
    assert names["listen, attend and spell"] == {"listener", "speller"}
    assert names["joint"] == {"listener", "speller", "ctc", "ctc_bias"}


@pytest.mark.parametrize(
    "name", ["pyramid", pytest.param("joint transformers", marks=pytest.mark.slow)]
)
def test_members_are_independent(name):
    """As training makes and runs them: side by side, each with parameters of its own."""
    model, batch = MODELS[name], some_batch()

    def init(key):
        return model.init(key, batch, method="forward")["params"]

    @jax.jit
    def run(keys):
        stacked = jax.vmap(init)(keys)
        apply = lambda p: model.apply({"params": p}, batch, method="forward")  # noqa: E731
        return stacked, jax.vmap(apply)(stacked)

    stacked, both = jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(0))))
    for member in range(2):
        one = called(model, jax.tree.map(lambda a, m=member: a[m], stacked), batch)
        np.testing.assert_allclose(both.logits[member], one.logits, atol=2e-5)
        assert np.array_equal(both.labelling[member], one.labelling)
    assert np.abs(both.logits[0] - both.logits[1]).max() > 1e-3


@pytest.mark.parametrize(
    "name", ["listen, attend and spell", pytest.param("joint", marks=pytest.mark.slow)]
)
def test_bfloat16_is_near_float32(name):
    changes = (
        {}
        if name == "listen, attend and spell"
        else {"ctc_weight": 0.3, "listener": "conformer", "filter_conv": 3}
    )
    exact, model = built(**changes), built(dtype="bfloat16", **changes)
    params, batch = jax.tree.map(lambda p: 0.5 * p, parameters(exact)), some_batch()
    expected, low = (np.asarray(called(m, params, batch).logits) for m in (exact, model))
    assert low.dtype == np.float32
    assert np.sqrt(np.mean((low - expected) ** 2)) < 0.05 * expected.std()


def test_implementations_and_bytes():
    names = {name: model.implementation for name, model in MODELS.items()}
    assert names["listen, attend and spell"] == names["ctc"] == "recurrent"
    assert names["joint"] == "dense, recurrent"
    assert names["transformers"] == "dense"
    assert MODELS["ctc"].state_bytes(5) is None
    # An LSTM's h and c and what is fed; to each state a value, its share of the energy and its
    # weight before.
    assert MODELS["listen, attend and spell"].state_bytes(5) == 4 * (3 * 8 + 5 * (8 + 8 + 1))
    blockwise = built(listener="transformer", encoder="mask=full, implementation=blockwise")
    assert blockwise.implementation == "blockwise, recurrent"


def test_without_a_speller_nothing_is_spelled():
    model, batch = MODELS["ctc"], some_batch()
    params = parameters(model)
    memory = encoded(model, params, batch)
    for method, args in (
        ("init_state", (memory, 4)),
        ("step", (memory, {}, jnp.zeros(B, jnp.int32))),
    ):
        with pytest.raises(UserError, match=r"model.ctc_weight=1.0: this model has no speller"):
            model.apply({"params": params}, *args, method=method)
    assert called(model, params, batch, "weights").shape == (B, 0, T, model.subsampled(S))


def test_without_ctc_there_are_no_labels():
    model = MODELS["pyramid"]
    with pytest.raises(UserError, match=r"model.ctc_weight=0.0: this model has no CTC"):
        memory = {"valid": jnp.ones((B, S), bool)}
        model.apply({"params": parameters(model)}, memory, method="ctc")


REFUSED = [
    ({"speller": "lstm"}, "model.speller='lstm' is unknown"),
    ({"ctc_weight": 1.5}, "model.ctc_weight=1.5 must be from 0 to 1"),
    ({"ctc_weight": -0.1}, "model.ctc_weight=-0.1 must be from 0 to 1"),
    ({"levels": 5}, "model.levels=5"),
    ({"activation": "swish"}, "model.activation='swish' is unknown"),
    ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
]


@pytest.mark.parametrize(("extra", "says"), REFUSED, ids=[str(r[0]) for r in REFUSED])
def test_what_does_not_fit_is_refused_in_one_line(extra, says):
    with pytest.raises(UserError) as caught:
        built(**extra)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
