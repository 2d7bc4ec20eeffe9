"""Recording changes nothing and is what was computed; changes change what they say and no more."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.interpret.capture import SITES, Change, parts, record, stacked
from research.models.model import parameter_shapes
from research.models.registry import make_model
from tests import small
from tests.attention.cases import close

V, T, S = 9, 8, 7
DEEP = {"num_layers": 4, "width": 8, "num_heads": 2, "feedforward": 12, "mask": "causal"}
PAIR = {"name": "encoder_decoder", "num_layers": 2, "num_heads": 2, "width": 8, "feedforward": 8}
SPEECH = {"num_layers": 2, "num_heads": 2, "width": 8}
CASES = {
    "decoder": (small.recall, DEEP),
    "blockwise": (small.recall, DEEP | {"implementation": "blockwise", "block_size": 4}),
    "remat": (small.recall, DEEP | {"remat": True}),
    "hybrid": (
        small.recall,
        DEEP | {"pattern": ("mixer=gated_delta, position=none", "mixer=gru, position=none")},
    ),
    "encoder_decoder": (small.transduction, PAIR),
    "recurrent": (small.transduction, {}),
    "conformer": (
        small.speech,
        SPEECH | {"listener": "conformer", "speller": "transformer", "feedforward": 8},
    ),
    "listener, recurrent speller": (small.speech, {"ctc_weight": 0.0}),
    "bilstm attention": (small.rule, {}),
    "class token": (
        small.rule,
        {"body": "transformer", "pooling": "class_token", "num_layers": 2, "feedforward": 8},
    ),
}
NAMES = {
    "decoder": [f"layer {i}" for i in range(4)],
    "blockwise": [f"layer {i}" for i in range(4)],
    "remat": [f"layer {i}" for i in range(4)],
    "hybrid": ["layer 0", "layer 2"],
    "encoder_decoder": [
        *("encoder 0", "encoder 1"),
        *("decoder 0", "decoder 0 cross", "decoder 1", "decoder 1 cross"),
    ],
    "recurrent": ["decoder 0 cross"],
    "conformer": [
        *("listener 0", "listener 1"),
        *("speller 0", "speller 0 cross", "speller 1", "speller 1 cross"),
    ],
    "listener, recurrent speller": ["decoder 0 cross"],
    "bilstm attention": ["pooling"],
    "class token": ["layer 0", "layer 1"],
}


@functools.cache  # so never to be called while tracing
def problem(name):
    make, changes = CASES[name]
    config = make(**{f"model__{k}": v for k, v in changes.items()})
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(3, V, (2, T)), jnp.int32)
    batch = {"inputs": tokens}
    if make in (small.transduction, small.speech):
        batch["source"] = jnp.asarray(rng.integers(3, V, (2, S)), jnp.int32)
        batch["source_length"] = jnp.array([S, 4], jnp.int32)
    if make is small.speech:
        batch["source"] = jnp.asarray(rng.normal(size=(2, 4 * S, 8)), jnp.float32)
        batch["source_length"] = jnp.array([4 * S, 17], jnp.int32)
    classes = {}
    if make is small.rule:
        batch["length"], classes = jnp.array([T, 5], jnp.int32), {"classes": 2}
    model = make_model(config.model, V, 16, **classes)
    params = jax.tree.map(
        lambda p: jnp.asarray(0.5 * rng.normal(size=p.shape), jnp.float32),
        parameter_shapes(model, batch),
    )
    return model, params, batch


def outputs_of(model, params, batch):
    return model.apply({"params": params}, batch, method="of_batch")


@pytest.mark.parametrize("name", CASES)
def test_recording_changes_nothing_and_finds_every_attention(name):
    model, params, batch = problem(name)
    outputs, found = jax.jit(lambda p, b: record(model, p, b, SITES))(params, batch)
    close(outputs, outputs_of(model, params, batch), 1e-6)
    with_weights = [part for part in parts(found) if "weights" in part.sites]
    assert [part.name for part in with_weights] == NAMES[name]
    for part in with_weights:
        assert part.sites.get("gap", 0) < 1e-5, part.name
        if "visible" in part.sites and part.kind == "self":
            hidden = ~np.broadcast_to(part.sites["visible"][:, None], part.sites["weights"].shape)
            assert not np.asarray(part.sites["weights"])[hidden].any()
    entries = [part.sites for part in parts(found) if "entry" in part.sites]
    for before, after in zip(entries, entries[1:], strict=False):
        if before["exit"].shape == after["entry"].shape and "encoder_decoder" not in name:
            close(before["exit"], after["entry"], 1e-6)


@pytest.mark.parametrize("name", ["encoder_decoder", "recurrent", "conformer"])
def test_cross_weights_are_those_the_model_gives_itself(name):
    model, params, batch = problem(name)
    found = record(model, params, batch, ("weights",))[1]
    own = model.apply({"params": params}, batch, method="weights")
    ours = stacked(found, "weights", "cross")  # (L, B, H, T, S)
    close(jnp.concatenate(list(ours), axis=1), own, 1e-6)


def test_pooling_is_recorded():
    model, params, batch = problem("bilstm attention")
    found = record(model, params, batch, ("weights", "values", "embeddings"))[1]
    (pooling,) = parts(found)
    own = model.apply({"params": params}, batch, method="weights")
    close(pooling.sites["weights"], own, 1e-6)
    table = params["embed"]["embedding"]
    close(found["embed"]["embeddings"], table[batch["inputs"]], 1e-6)


@pytest.mark.parametrize("name", ["decoder", "blockwise", "remat"])
def test_own_weights_in_place_of_themselves_change_nothing(name):
    model, params, batch = problem(name)
    own = stacked(record(model, params, batch, ("weights",))[1], "weights")
    everywhere = Change(own, jnp.bool_(True).reshape(1, 1, 1, 1, 1))
    outputs, _ = record(model, params, batch, (), {"weights": everywhere})
    close(outputs, outputs_of(model, params, batch), 1e-5)


def test_other_weights_in_one_layer_are_what_is_summed():
    model, params, batch = problem("decoder")
    first = jnp.zeros((4, 2, 2, T, T)).at[..., 0].set(1)
    where = (jnp.arange(4) == 2).reshape(4, 1, 1, 1, 1)
    recorded = record(
        model, params, batch, ("weights", "read", "values"), {"weights": Change(first, where)}
    )[1]
    weights, read, values = (stacked(recorded, s) for s in ("weights", "read", "values"))
    close(weights[2], first[2], 1e-6)
    close(read[2], jnp.broadcast_to(values[2][:, :1], read[2].shape), 1e-5)
    own = stacked(record(model, params, batch, ("weights",))[1], "weights")
    close(weights[:2], own[:2], 1e-6)
    assert np.abs(weights[3] - own[3]).max() > 1e-3


def test_reading_nothing_is_the_output_matrix_without_the_head():
    model, params, batch = problem("decoder")
    gone = jnp.zeros((4, 2, T, 2, 4))
    where = ((jnp.arange(4) == 1)[:, None] & (jnp.arange(2) == 1)).reshape(4, 1, 1, 2, 1)
    outputs, _ = record(model, params, batch, (), {"read": Change(gone, where)})
    without = jax.tree.map(lambda p: p, params)
    without["layers"]["0"]["mixer"]["out"] = (
        params["layers"]["0"]["mixer"]["out"].at[1, 1].set(0)  # (L, H, D, M)
    )
    close(outputs, outputs_of(model, without, batch), 1e-5)


@pytest.mark.parametrize("site", ["entry", "exit"])
def test_the_stream_of_another_input_gives_its_outputs(site):
    model, params, batch = problem("decoder")
    other = {"inputs": batch["inputs"][:, ::-1]}
    stream = stacked(record(model, params, other, (site,))[1], site)
    where = (jnp.arange(4) == 2).reshape(4, 1, 1, 1)
    outputs, _ = record(model, params, batch, (), {site: Change(stream, where)})
    close(outputs, outputs_of(model, params, other), 1e-5)


def test_a_stream_changed_at_one_position_is_seen_from_there_on_only():
    model, params, batch = problem("decoder")
    where = ((jnp.arange(4) == 1)[:, None] & (jnp.arange(T) == 5)).reshape(4, 1, T, 1)
    changed, _ = record(model, params, batch, (), {"entry": Change(jnp.ones((4, 2, T, 8)), where)})
    own = outputs_of(model, params, batch)
    close(changed[:, :5], own[:, :5], 1e-6)
    assert (np.abs(changed[:, 5:] - own[:, 5:]).max(-1) > 1e-4).all()


def test_changes_of_a_pattern_go_to_their_layers():
    model, params, batch = problem("hybrid")
    stream = stacked(record(model, params, batch, ("entry",))[1], "entry")
    for layer in range(4):
        where = (jnp.arange(4) == layer).reshape(4, 1, 1, 1)
        found = record(model, params, batch, ("entry",), {"entry": Change(stream + 1, where)})[1]
        close(stacked(found, "entry")[layer], stream[layer] + 1, 1e-5)
        np.testing.assert_allclose(stacked(found, "entry")[:layer], stream[:layer], atol=1e-5)


def test_embeddings_of_another_input_give_its_outputs_and_gradients_pass():
    model, params, batch = problem("bilstm attention")
    other = batch | {"inputs": batch["inputs"][:, ::-1]}
    embeddings = params["embed"]["embedding"][other["inputs"]]

    def first_logit(x):
        change = Change(x, jnp.bool_(True).reshape(1, 1, 1))
        return record(model, params, batch, (), {"embeddings": change})[0]

    close(first_logit(embeddings), outputs_of(model, params, other), 1e-6)
    slope = jax.grad(lambda x: first_logit(x)[0, 0])(embeddings)
    assert np.abs(slope[0]).max() > 0 and not np.abs(slope[1]).any()


def test_pooling_weights_can_be_replaced():
    model, params, batch = problem("bilstm attention")
    one = jnp.zeros((2, 1, 1, T)).at[..., 3].set(1)
    change = Change(one, jnp.bool_(True).reshape(1, 1, 1, 1))
    found = record(model, params, batch, ("weights", "values"), {"weights": change})
    (pooling,) = parts(found[1])
    state = pooling.sites["values"][:, 3, 0]
    expected = state @ params["head"] + params["head_bias"]
    close(found[0], expected, 1e-5)


def test_members_side_by_side_are_each_alone():
    model, params, batch = problem("encoder_decoder")
    both = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    found = jax.vmap(lambda p: record(model, p, batch, ("weights",))[1])(both)
    second = record(model, jax.tree.map(lambda p: 2 * p, params), batch, ("weights",))[1]
    close(jax.tree.map(lambda a: a[1], found), second, 1e-5)


def test_mistakes_are_named():
    model, params, batch = problem("hybrid")
    with pytest.raises(UserError, match="sites='weight'"):
        record(model, params, batch, ("weight",))
    with pytest.raises(UserError, match="changes='scores'"):
        record(model, params, batch, (), {"scores": Change(jnp.zeros(1), jnp.bool_(True))})
    with pytest.raises(UserError, match="no such place"):
        record(model, params, batch, (), {"embeddings": Change(jnp.zeros(1), jnp.bool_(True))})
    with pytest.raises(UserError, match="no weights of cross-attention"):
        stacked(record(model, params, batch, ("weights",))[1], "weights", "cross")
