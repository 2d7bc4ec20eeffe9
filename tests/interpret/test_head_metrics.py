"""Measures of heads as metrics: against the measures themselves, in runs, and as outcomes."""

import functools

import jax
import numpy as np
import pytest

from research.errors import UserError
from research.interpret.capture import attention_records, record
from research.interpret.head_metrics import MEASURES, SITES, head_measure_sums, measure_labels
from research.interpret.heads import head_measures
from tests.interpret.test_capture import layers, problem

TEXT = ("entropy", "distance", "previous_token", "sink", "induction", "normalized_entropy")


@functools.partial(jax.jit, static_argnums=(0, 3))
def measured(model, params, batch, measures):
    found = record(model, params, batch, SITES)[1]
    return head_measure_sums(attention_records(found), batch, measures), found


def columns_of(model, params, batch, measures):
    """The measures of a batch, and what was recorded for them."""
    return jax.device_get(measured(model, params, batch, measures))


@jax.jit
def one_by_one(weights, tokens):
    """The measures of each layer's heads; each layer alone."""
    names = ("entropy", "distance", "previous_token", "sink")
    found = {name: [getattr(head_measures, name)(w) for w in weights] for name in names}
    return found | {"induction": [head_measures.induction(w, tokens) for w in weights]}


def test_columns_are_the_measures_of_all_heads():
    model, params, batch = problem("decoder")
    sums, found = columns_of(model, params, batch, TEXT)
    weights = layers(found, "weights")  # (L, B, H, T, T)
    expected = jax.device_get(one_by_one(weights, batch["inputs"]))
    heads = expected.pop("induction")
    for name, each in expected.items():
        ratios = np.concatenate([s.total / s.count for s in each])
        by_head = sums[f"{name}_by_head"]
        np.testing.assert_allclose(by_head.total / by_head.count, ratios, rtol=1e-5)
        one = ratios.max() if MEASURES[name].max_over_heads else ratios.mean()
        np.testing.assert_allclose(sums[name].total, one, rtol=1e-5)
        assert sums[name].count == 1
    expected = max(float((s.total / s.count).max()) for s in heads)
    np.testing.assert_allclose(sums["induction"].total, expected, rtol=1e-5)


def test_padding_and_what_is_not_asked_do_not_count():
    model, params, batch = problem("class token")
    sums, found = columns_of(model, params, batch, ("entropy",))
    weights = layers(found, "weights")
    # a class token and 8 tokens; 5 of row 1
    rows = np.concatenate([weights[:, 0].reshape(-1, 9), weights[:, 1, :, :6].reshape(-1, 9)])
    own = -(rows * np.log(np.where(rows > 0, rows, 1))).sum(-1)
    np.testing.assert_allclose(sums["entropy"].total, own.mean(), rtol=1e-5)

    model, params, batch = problem("encoder_decoder")
    targets = np.zeros(batch["inputs"].shape, np.int32)
    targets[1, 3:] = -1
    sums, found = columns_of(model, params, batch | {"targets": targets}, ("confidence_of_cross",))
    largest = layers(found, "weights", "cross").max(-1)
    expected = np.concatenate([largest[:, 0].ravel(), largest[:, 1, :, :3].ravel()]).mean()
    np.testing.assert_allclose(sums["confidence_of_cross"].total, expected, rtol=1e-5)


def test_heads_are_named_by_their_layers():
    model, _, batch = problem("encoder_decoder")
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)
    found = measure_labels(model, shapes, ("entropy", "entropy_of_cross"))
    assert found["entropy_by_head"][:3] == ["encoder 0.0", "encoder 0.1", "encoder 1.0"]
    assert found["entropy_of_cross_by_head"] == [
        f"decoder {layer} cross.{head}" for layer in range(2) for head in range(2)
    ]


@pytest.mark.parametrize(
    "name, measure, message",
    [
        ("decoder", "entropy_of_cross", "cross-attention, and this model has none"),
        ("recurrent", "induction", "self-attention, and this model has none"),
        ("conformer", "induction", "speech features have none"),
    ],
)
def test_what_a_model_does_not_have_is_refused(name, measure, message):
    model, _, batch = problem(name)
    with pytest.raises(UserError, match=message):
        measure_labels(model, batch, (measure,))
