"""An induction head made by hand: whatever looks into models has to find it, and where it reads.

Two layers of one head each on a stream that has a one-hot token, a one-hot position and room for
the token before. The head of layer 0 writes the token before into that room; that of layer 1 looks
for positions whose token before is its own token, and writes their token. Olsson et al. 2022,
"In-context Learning and Induction Heads".
"""

import functools

import jax
import numpy as np
import pytest

from research.interpret.heads.head_masking import mask_heads
from research.interpret.logit_lens import decoder_lens
from research.interpret.patching import (
    patch_effects,
    patched_heads,
    patched_stream,
    record_activations,
    single_sites,
)
from research.models.registry import make_model
from tests import small
from tests.compiled import compiled
from tests.interpret.test_capture import applied, layers
from tests.interpret.test_head_metrics import columns_of

V, T = 12, 10
WIDTH, D = 2 * V + T + V, 16
TOKEN, PLACE, BEFORE, GUESS = (
    slice(0, V),
    slice(V, V + T),
    slice(V + T, 2 * V + T),
    slice(2 * V + T, WIDTH),
)
SHARP = 60.0


@functools.cache
def circuit():
    config = small.recall(
        model__width=WIDTH,
        model__num_layers=2,
        model__num_heads=1,
        model__head_width=D,
        model__feedforward=0,
        model__position="learned",
        model__tie_embeddings=False,
    )
    model = make_model(config.model, V, T)
    embedding = np.zeros((V, WIDTH))
    embedding[:, TOKEN] = np.eye(V)
    position = np.zeros((T, WIDTH))
    position[:, PLACE] = np.eye(T)
    head = np.zeros((WIDTH, V))
    head[GUESS] = SHARP * np.eye(V)
    query, key, value = (np.zeros((2, WIDTH, 1, D)) for _ in range(3))
    query[0, PLACE, 0] = SHARP * np.eye(T, D, k=-1)  # position t asks for t - 1
    key[0, PLACE, 0] = np.eye(T, D)
    query[1, TOKEN, 0] = SHARP * np.eye(V, D)
    key[1, BEFORE, 0] = np.eye(V, D)
    value[:, TOKEN, 0] = np.eye(V, D)
    out = np.zeros((2, 1, D, WIDTH))
    out[0, 0, :, BEFORE] = np.eye(D, V)
    out[1, 0, :, GUESS] = np.eye(D, V)
    mixer = {"query": query, "key": key, "value": value, "out": out}
    params = {
        "embedding": embedding,
        "position": position,
        "head": head,
        "norm": {"scale": np.ones(WIDTH)},
        "layers": {"0": {"norm1": {"scale": np.ones((2, WIDTH))}, "mixer": mixer}},
    }
    return model, jax.tree.map(lambda a: a.astype(np.float32), params)


# 5 was followed by 7; the second 5 is at place 6.
TOKENS = np.array([[3, 5, 7, 2, 9, 4, 5, 7, 2, 9]], np.int32)
OTHER = np.array([[3, 5, 8, 2, 9, 4, 5, 7, 2, 9]], np.int32)
ASKED = 6


def metric(logits):
    return logits[0, ASKED, 7] - logits[0, ASKED, 8]


def test_the_circuit_predicts_what_followed_before():
    model, params = circuit()
    logits = np.asarray(applied(model, params, {"inputs": TOKENS}))
    assert logits[0, 6:9].argmax(-1).tolist() == [7, 2, 9]


def test_it_is_found_and_scored_one():
    model, params = circuit()
    batch = {"inputs": TOKENS}
    names = ("induction", "previous_token")
    sums, found = columns_of(model, params, batch, names)
    induction, previous = (
        s.total / s.count for s in (sums["induction_by_head"], sums["previous_token_by_head"])
    )
    assert induction[1] == pytest.approx(1, abs=1e-3) and induction[0] < 0.1
    assert previous[0] == pytest.approx(1, abs=1e-3) and previous[1] < 0.5
    assert sums["induction"].total == pytest.approx(1, abs=1e-3)
    weights = layers(found, "weights")
    assert weights[1, 0, 0, 6].argmax() == 2  # the second 5 reads what followed the first


def test_without_either_head_it_is_gone():
    model, params = circuit()
    for layer in range(2):
        mask = np.ones((2, 1), np.float32)
        mask[layer] = 0
        masked = compiled(mask_heads, 0)(model, params, mask)
        chosen = np.asarray(applied(model, masked, {"inputs": TOKENS}))[0, 6:9].argmax(-1).tolist()
        assert chosen != [7, 2, 9]


def test_patching_finds_the_places_the_answer_passes_through():
    model, params = circuit()
    clean, corrupted = {"inputs": TOKENS}, {"inputs": OTHER}

    def effects_of(site, patched, *shape):
        @compiled
        def effects(params, clean, corrupted):
            run, cache = (
                patched(model, params, metric),
                record_activations(model, params, clean, site),
            )
            return patch_effects(run, clean, corrupted, cache, single_sites(*shape))

        return effects(params, clean, corrupted).reshape(2, T)

    effects = effects_of("entry", patched_stream, 2, T)
    # What differs stands at place 2 and is read from there by layer 1.
    expected = np.zeros((2, T))
    expected[:, 2] = 1
    np.testing.assert_allclose(effects, expected, atol=1e-3)
    effects = effects_of("read", patched_heads, 2, T, 1)
    expected = np.zeros((2, T))
    expected[1, ASKED] = 1
    np.testing.assert_allclose(effects, expected, atol=1e-3)


def test_the_lens_sees_the_answer_behind_the_last_layer_only():
    model, params = circuit()
    batch = {"inputs": TOKENS}
    seen = compiled(decoder_lens, 0)(model, params, batch)
    assert seen.shape == (3, 1, T, V)
    logits = applied(model, params, batch)
    np.testing.assert_allclose(seen[-1], logits, rtol=1e-5, atol=1e-5)
    assert not seen[:2, 0, ASKED].any()
