"""Converted parameters compute what they should, checked through the models that they are for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.models.conversion import (
    Converted,
    by_layer,
    convert,
    group_heads,
    without_heads,
)
from research.models.model import parameter_shapes
from research.models.registry import make_model
from tests import small

BATCH = {"inputs": jnp.arange(20).reshape(2, 10) % 16}
SMALL = {"width": 8, "num_layers": 2, "feedforward": 16, "num_heads": 4}


def model_of(length=16, **changes):
    return make_model(small.model(**SMALL | changes), 16, length)


def shapes_of(model):
    return parameter_shapes(model, BATCH)


def random_params(model, seed=0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda s: random.normal(size=s.shape).astype(s.dtype) / 2, shapes_of(model))


def converted(source, model, heads="mean", params=None) -> Converted:
    params = random_params(source) if params is None else params
    initial = functools.partial(random_params, model, 1)
    return convert(params, source, model, shapes_of(model), initial, heads)


def logits(model, params):
    return model.apply({"params": params}, BATCH, method="forward")


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_same_model_gets_the_same_parameters():
    model = model_of(use_bias=True, qk_norm="rms")
    found = converted(model, model)
    assert_equal(found.params, random_params(model))
    assert found[1:] == ((), ())


@pytest.mark.parametrize("how", ["mean", "first"])
def test_heads_are_grouped_as_queries_share_them(how):
    source = model_of(use_bias=True, qk_norm="rms")
    model = model_of(use_bias=True, qk_norm="rms", num_kv_heads=2)
    params = random_params(source)
    found = converted(source, model, how, params)
    there, here = params["layers"]["0"]["mixer"], found.params["layers"]["0"]["mixer"]
    for name in ("key", "value", "key_bias", "value_bias"):
        heads = there[name].ndim - 2
        for layer in range(2):
            for group in range(2):
                own = [np.take(there[name][layer], 2 * group + i, heads - 1) for i in range(2)]
                expected = (own[0] + own[1]) / 2 if how == "mean" else own[0]
                now = np.take(here[name][layer], group, heads - 1)
                np.testing.assert_allclose(now, expected, rtol=1e-6)
    for name in ("query", "out", "query_scale", "key_scale", "query_bias", "out_bias"):
        np.testing.assert_array_equal(here[name], there[name])
    assert found[1:] == ((), ())


@pytest.mark.parametrize("how", ["mean", "first"])
@pytest.mark.parametrize("groups", [1, 2])
def test_grouping_heads_that_are_equal_in_their_group_changes_nothing(how, groups):
    grouped, source = model_of(num_kv_heads=groups), model_of()
    params = random_params(grouped)
    # Fewer heads are repeated where the new model has more.
    repeated = converted(grouped, source, params=params).params
    np.testing.assert_allclose(logits(source, repeated), logits(grouped, params), atol=1e-6)
    back = converted(source, grouped, how, repeated).params
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), back, params)


def test_new_heads_are_drawn_and_told():
    source, model = model_of(), model_of(num_kv_heads=1)
    found = converted(source, model, "random")
    assert found.fresh == ("layers/*/mixer/key", "layers/*/mixer/value")
    drawn, own = random_params(model, 1), found.params
    for name in ("key", "value"):
        assert_equal(own["layers"]["0"]["mixer"][name], drawn["layers"]["0"]["mixer"][name])
    assert_equal(own["embedding"], random_params(source)["embedding"])


def test_as_many_groups_as_heads_is_the_identity():
    value = np.random.default_rng(0).normal(size=(3, 4, 5))
    for how in ("mean", "first"):
        np.testing.assert_array_equal(group_heads(value, 1, 4, how), value)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": "window", "window": 10},
        {"mask": "window | causal & global", "window": 10, "global_tokens": 2},
        {"rope_scaling": "linear", "rope_factor": 1.0},
        {"rope_scaling": "yarn", "rope_factor": 1.0, "rope_original_length": 16},
        {"implementation": "blockwise"},
    ],
    ids=str,
)
def test_mechanisms_without_parameters_of_their_own_change_nothing_where_they_are_the_same(changes):
    source, model = model_of(), model_of(**changes)
    found = converted(source, model)
    assert_equal(found.params, random_params(source))
    expected = logits(source, random_params(source))
    np.testing.assert_allclose(logits(model, found.params), expected, atol=2e-6)


def test_a_new_mechanism_starts_from_the_projections():
    source, model = model_of(output_gate=True), model_of(mixer="gated_delta")
    found = converted(source, model)
    there, drawn = random_params(source), random_params(model, 1)
    mixer = found.params["layers"]["0"]["mixer"]
    for name, value in mixer.items():
        carried = name in ("query", "key", "value", "out")
        own = (there if carried else drawn)["layers"]["0"]["mixer"][name]
        assert_equal(value, own)
    # The gates of the two have one name and one shape, and are not the same.
    assert "layers/*/mixer/gate" in found.fresh and "layers/*/mixer/beta" in found.fresh
    assert found.unused == ("layers/*/mixer/gate",)


def test_layers_go_where_another_pattern_has_them():
    source = model_of(num_layers=4)
    model = model_of(num_layers=4, pattern=("mixer=softmax", "mixer=gated_linear"))
    found = converted(source, model)
    there, here = by_layer(random_params(source)), by_layer(found.params)
    for path, value in there.items():
        np.testing.assert_array_equal(here[path], value)
    assert {name.split("/")[-1] for name in found.fresh} >= {"gate", "decay_bias"}
    back = converted(model, source, params=found.params)
    assert_equal(back.params, random_params(source))
    assert set(back.unused) == set(found.fresh)


def test_learned_positions_can_be_fewer_but_not_more():
    long, short = model_of(16, position="learned"), model_of(12, position="learned")
    params = random_params(long)
    found = converted(long, short, params=params)
    np.testing.assert_allclose(logits(short, found.params), logits(long, params), atol=1e-6)
    with pytest.raises(UserError, match=r"positions for 12 tokens, and task.length=16 needs more"):
        converted(short, long)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feedforward": 32}, r"layers/0/feedforward/in is \(8, 16\) there, \(8, 32\) here"),
        ({"num_layers": 4}, r"layers/2/feedforward/in is absent there, \(8, 16\) here"),
        ({"num_layers": 1}, r"layers/1/feedforward/in is \(8, 16\) there, absent here"),
        ({"num_heads": 2}, r"layers/0/mixer/key is \(8, 4, 2\) there, \(8, 2, 4\) here"),
        ({"norm": "layernorm", "use_bias": True}, r"layers/0/feedforward/in_bias is absent there"),
        ({"tie_embeddings": False}, r"head is absent there, \(8, 16\) here"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(UserError, match=message):
        converted(model_of(), model_of(**changes))


def test_a_head_that_is_taken_out_adds_nothing():
    model = model_of(feedforward=0, num_layers=1)
    params = random_params(model)
    kept = without_heads(params, model, ("0.1", "0.3"))
    mixer = model.config.mixers[0]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
    own = {name: jnp.asarray(value[0]) for name, value in params["layers"]["0"]["mixer"].items()}
    left = {name: jnp.asarray(value[0]) for name, value in kept["layers"]["0"]["mixer"].items()}
    trace = mixer.attention_trace(own, x)
    heads = jnp.einsum("bhts,bshd->bthd", trace.weights, trace.values)
    expected = sum(jnp.einsum("btd,dm->btm", heads[:, :, h], own["out"][h]) for h in (0, 2))
    np.testing.assert_allclose(mixer(left, x), expected, atol=1e-5)
    assert_equal(params, random_params(model))  # its arguments are as they were


@pytest.mark.parametrize(
    ("changes", "head", "message"),
    [
        ({}, "2.0", "'2.0': there are 2 layers that mix, counted from 0"),
        ({}, "1.4", "'1.4': layer 1 has 4 heads, counted from 0"),
        ({"mixer": "gru", "position": "none"}, "0.0", "layer 0 has no heads to take out"),
    ],
    ids=str,
)
def test_a_head_that_is_not_there_is_named(changes, head, message):
    model = model_of(**changes)
    with pytest.raises(UserError, match=message):
        without_heads(random_params(model), model, (head,))


def test_encoder_decoders_convert():
    """Their cross-attention is a stack of its own, without places in a pattern."""
    tokens, length = jax.ShapeDtypeStruct((1, 2), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    batch = {"source": tokens, "source_length": length, "inputs": tokens, "targets": tokens}

    def model_of(kv_heads):
        name = {"name": "encoder_decoder", "num_kv_heads": kv_heads}
        return make_model(SMALL | name, 16, 8)

    def params_of(model, seed):
        random = np.random.default_rng(seed)
        shapes = parameter_shapes(model, batch)
        return shapes, jax.tree.map(lambda s: random.normal(size=s.shape).astype(s.dtype), shapes)

    many, few = model_of(4), model_of(2)
    shapes, params = params_of(many, 0)
    assert_equal(convert(params, many, many, shapes, dict).params, params)
    wanted = parameter_shapes(few, batch)
    found = convert(params, many, few, wanted, dict, "first").params
    assert jax.tree.map(np.shape, found) == jax.tree.map(np.shape, wanted)
    there, here = by_layer(params), by_layer(found)
    key = ("decoder", "layers", "1", "mixer", "key")
    np.testing.assert_array_equal(here[key], there[key][:, ::2])
