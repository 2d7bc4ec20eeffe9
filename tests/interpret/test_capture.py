"""Recording changes nothing and is what was computed; changes change what they say and no more."""

import functools

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.interpret.capture import SITES, Intervention, attention_records, record, stacked
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
    "blockwise": (
        small.recall,
        DEEP
        | {
            "implementation": "blockwise",
            "block_size": 4,
            "pattern": ("forget_gate=true", "mask=moba, block_length=2, top_blocks=2"),
        },
    ),
    "remat": (small.recall, DEEP | {"remat": True}),
    "hybrid": (
        small.recall,
        DEEP | {"pattern": ("mixer=gated_delta, position=none", "mixer=gru, position=none")},
    ),
    "attention second": (small.recall, DEEP | {"pattern": ("mixer=gru, position=none", "")}),
    "attention first": (small.recall, DEEP | {"pattern": ("", "mixer=gru, position=none")}),
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
    "attention second": ["layer 1", "layer 3"],
    "attention first": ["layer 0", "layer 2"],
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


@functools.cache
def problem(name):
    """Model, parameters and batch of a case, all arrays NumPy's."""
    make, deltas = CASES[name]
    config = make(**{f"model__{k}": v for k, v in deltas.items()})
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.integers(3, V, (2, T)).astype(np.int32)}
    if make in (small.transduction, small.speech):
        batch["source"] = rng.integers(3, V, (2, S)).astype(np.int32)
        batch["source_length"] = np.array([S, 4], np.int32)
    if make is small.speech:
        batch["source"] = rng.normal(size=(2, 4 * S, 8)).astype(np.float32)
        batch["source_length"] = np.array([4 * S, 17], np.int32)
    classes = {}
    if make is small.rule:
        batch["length"], classes = np.array([T, 5], np.int32), {"classes": 2}
    model = make_model(config.model, V, 16, **classes)
    params = jax.tree.map(
        lambda p: (0.5 * rng.normal(size=p.shape)).astype(np.float32),
        parameter_shapes(model, batch),
    )
    return model, params, batch


@functools.partial(jax.jit, static_argnums=(0, 3))
def applied(model, params, batch, method="forward"):
    return model.apply({"params": params}, batch, method=method)


@functools.partial(jax.jit, static_argnums=(0, 3))
def recorded(model, params, batch, sites, interventions):
    return record(model, params, batch, sites, interventions)


def looked(model, params, batch, sites=SITES, interventions=None):
    """What `record` returns, compiled, as arrays of NumPy."""
    return jax.device_get(recorded(model, params, batch, sites, interventions))


def layers(found, site, kind="self"):
    return np.stack(
        [p.sites[site] for p in attention_records(found) if p.kind == kind and site in p.sites]
    )


@pytest.mark.parametrize("name", CASES)
def test_recording_changes_nothing_and_finds_every_attention(name):
    model, params, batch = problem(name)
    outputs, found = looked(model, params, batch)
    close(outputs, applied(model, params, batch), 1e-6)
    with_weights = [part for part in attention_records(found) if "weights" in part.sites]
    assert [part.name for part in with_weights] == NAMES[name]
    for part in with_weights:
        assert part.sites.get("gap", 0) < 1e-5, part.name
        if "visible" in part.sites and part.kind == "self":
            hidden = ~np.broadcast_to(part.sites["visible"][:, None], part.sites["weights"].shape)
            assert not part.sites["weights"][hidden].any()
    entries = [part.sites for part in attention_records(found) if "entry" in part.sites]
    for before, after in zip(entries, entries[1:], strict=False):
        if before["exit"].shape == after["entry"].shape and "encoder_decoder" not in name:
            close(before["exit"], after["entry"], 1e-6)


@pytest.mark.parametrize("name", ["encoder_decoder", "recurrent", "conformer"])
def test_cross_weights_are_those_the_model_gives_itself(name):
    model, params, batch = problem(name)
    found = looked(model, params, batch)[1]
    own = applied(model, params, batch, "weights")
    ours = stacked(found, "weights", "cross")  # (L, B, H, T, S)
    close(np.concatenate(list(np.asarray(ours)), axis=1), own, 1e-6)


def test_pooling_is_recorded():
    model, params, batch = problem("bilstm attention")
    found = looked(model, params, batch)[1]
    (pooling,) = attention_records(found)
    close(pooling.sites["weights"], applied(model, params, batch, "weights"), 1e-6)
    table = params["embed"]["embedding"]
    close(found["embed"]["embeddings"], table[batch["inputs"]], 1e-6)


@pytest.mark.parametrize("name", ["decoder", "blockwise", "remat"])
def test_own_weights_in_place_of_themselves_change_nothing(name):
    model, params, batch = problem(name)
    own = layers(looked(model, params, batch)[1], "weights")
    everywhere = Intervention(own, np.ones((1, 1, 1, 1, 1), bool))
    outputs, _ = looked(model, params, batch, (), {"weights": everywhere})
    close(outputs, applied(model, params, batch), 1e-5)


def test_other_weights_in_one_layer_are_what_is_summed():
    model, params, batch = problem("decoder")
    first = np.zeros((4, 2, 2, T, T), np.float32)
    first[..., 0] = 1
    where = (np.arange(4) == 2).reshape(4, 1, 1, 1, 1)
    sites = ("weights", "read", "values")
    found = looked(model, params, batch, sites, {"weights": Intervention(first, where)})[1]
    weights, read, values = (layers(found, s) for s in sites)
    close(weights[2], first[2], 1e-6)
    close(read[2], np.broadcast_to(values[2][:, :1], read[2].shape), 1e-5)
    own = layers(looked(model, params, batch)[1], "weights")
    close(weights[:2], own[:2], 1e-6)
    assert np.abs(weights[3] - own[3]).max() > 1e-3


def test_reading_nothing_is_the_output_matrix_without_the_head():
    model, params, batch = problem("decoder")
    gone = np.zeros((4, 2, T, 2, 4), np.float32)
    where = ((np.arange(4) == 1)[:, None] & (np.arange(2) == 1)).reshape(4, 1, 1, 2, 1)
    outputs, _ = looked(model, params, batch, (), {"read": Intervention(gone, where)})
    without = jax.tree.map(np.copy, params)
    without["layers"]["0"]["mixer"]["out"][1, 1] = 0  # (L, H, D, M)
    close(outputs, applied(model, without, batch), 1e-5)


@pytest.mark.parametrize("site", ["entry", "exit"])
def test_the_stream_of_another_input_gives_its_outputs(site):
    model, params, batch = problem("decoder")
    other = {"inputs": batch["inputs"][:, ::-1]}
    stream = layers(looked(model, params, other)[1], site)
    where = np.broadcast_to((np.arange(4) == 2).reshape(4, 1, 1, 1), (4, 1, T, 1))
    outputs, _ = looked(model, params, batch, (), {site: Intervention(stream, where)})
    close(outputs, applied(model, params, other), 1e-5)


def test_a_stream_changed_at_one_position_is_seen_from_there_on_only():
    model, params, batch = problem("decoder")
    where = ((np.arange(4) == 1)[:, None] & (np.arange(T) == 5)).reshape(4, 1, T, 1)
    ones = np.ones((4, 2, T, 8), np.float32)
    changed, _ = looked(model, params, batch, (), {"entry": Intervention(ones, where)})
    own = np.asarray(applied(model, params, batch))
    close(changed[:, :5], own[:, :5], 1e-6)
    assert (np.abs(changed[:, 5:] - own[:, 5:]).max(-1) > 1e-4).all()


def test_changes_of_a_pattern_go_to_their_layers():
    model, params, batch = problem("hybrid")
    stream = layers(looked(model, params, batch)[1], "entry")
    for layer in range(4):
        where = (np.arange(4) == layer).reshape(4, 1, 1, 1)
        change = {"entry": Intervention(stream + 1, where)}
        found = layers(looked(model, params, batch, ("entry",), change)[1], "entry")
        close(found[layer], stream[layer] + 1, 1e-5)
        np.testing.assert_allclose(found[:layer], stream[:layer], atol=1e-5)


@pytest.mark.parametrize("name", ["attention second", "attention first"])
def test_weights_of_a_hybrid_are_changed_in_the_layer_that_is_meant(name):
    """Against the same model with uniform weights in one layer, its attention done by hand."""
    model, params, batch = problem(name)
    own = looked(model, params, batch, ("weights",))[1]
    named = [part.name for part in attention_records(own)]
    assert named == NAMES[name] and stacked(own, "weights").shape[0] == 2
    sites = ("weights", "values", "read", "entry")
    plain = {
        part.name: part.sites for part in attention_records(looked(model, params, batch, sites)[1])
    }
    first = np.zeros((2, 2, 2, T, T), np.float32)
    first[..., 0] = 1
    for rank, layer in enumerate(named):
        where = (np.arange(2) == rank).reshape(2, 1, 1, 1, 1)
        found = looked(model, params, batch, sites, {"weights": Intervention(first, where)})[1]
        changed = {part.name: part.sites for part in attention_records(found)}
        # Up to the layer nothing differs, in it everything is read from the first token.
        for i in range(int(layer.split()[1]) + 1):
            close(changed[f"layer {i}"]["entry"], plain[f"layer {i}"]["entry"], 1e-6)
        read = np.broadcast_to(plain[layer]["values"][:, :1], plain[layer]["read"].shape)
        close(changed[layer]["weights"], first[rank], 1e-6)
        close(changed[layer]["read"], read, 1e-5)
        for other in set(named) - {layer}:
            assert np.abs(changed[other]["weights"] - first[rank]).max() > 1e-3
    with pytest.raises(UserError, match="are for 4 layers, but 2 have this site"):
        record(
            model, params, batch, (), {"weights": Intervention(np.zeros((4, 2, 2, T, T)), where)}
        )


def test_embeddings_of_another_input_give_its_outputs_and_gradients_pass():
    model, params, batch = problem("bilstm attention")
    other = batch | {"inputs": batch["inputs"][:, ::-1]}
    embeddings = params["embed"]["embedding"][other["inputs"]]

    def first_logit(x):
        change = Intervention(x, np.ones((1, 1, 1), bool))
        outputs = record(model, params, batch, (), {"embeddings": change})[0]
        return outputs[0, 0], outputs

    slope, outputs = jax.jit(jax.grad(first_logit, has_aux=True))(embeddings)
    close(outputs, applied(model, params, other), 1e-6)
    slope = np.abs(slope)
    assert slope[0].max() > 0 and not slope[1].any()


def test_pooling_weights_can_be_replaced():
    model, params, batch = problem("bilstm attention")
    one = np.zeros((2, 1, 1, T), np.float32)
    one[..., 3] = 1
    change = Intervention(one, np.ones((1, 1, 1, 1), bool))
    outputs, found = looked(model, params, batch, ("weights", "values"), {"weights": change})
    (pooling,) = attention_records(found)
    state = pooling.sites["values"][:, 3, 0]
    close(outputs, state @ params["head"] + params["head_bias"], 1e-5)


def test_members_side_by_side_are_each_alone():
    model, params, batch = problem("encoder_decoder")
    twice = jax.tree.map(lambda p: 2 * p, params)
    both = jax.tree.map(lambda *p: np.stack(p), params, twice)
    found = jax.jit(jax.vmap(lambda p: record(model, p, batch, SITES)[1]))(both)
    second = looked(model, twice, batch)[1]
    close(jax.tree.map(lambda a: np.asarray(a)[1], found), second, 1e-5)


def test_mistakes_are_named():
    model, params, batch = problem("hybrid")
    change = Intervention(np.zeros(1), np.bool_(True))
    with pytest.raises(UserError, match="sites='weight'"):
        record(model, params, batch, ("weight",))
    with pytest.raises(UserError, match="interventions='scores'"):
        record(model, params, batch, (), {"scores": change})
    with pytest.raises(UserError, match="no such site"):
        record(model, params, batch, (), {"embeddings": change})
    with pytest.raises(UserError, match="no weights of cross-attention"):
        stacked(looked(model, params, batch)[1], "weights", "cross")
