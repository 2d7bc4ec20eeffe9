"""Costs along a text against whole forward passes, window by window."""

import math

import numpy as np
import pytest

from research.decoding import stream_curves
from research.decoding.stream_curves import (
    Curve,
    bin_means,
    full_attention_losses,
    position_bins,
    recomputed_window_losses,
    stream_models,
    streaming_losses,
    summaries,
    text_pieces,
)
from research.decoding.streaming import streaming
from research.errors import UserError
from research.models.registry import make_model
from tests import small
from tests.decoding.test_continuation import forward
from tests.decoding.toy import drawn

VOCAB, LENGTH, TOKENS, WINDOW = 16, 12, 23, 6


def model_of(**deltas):
    return make_model(small.recall(**deltas).model, VOCAB, LENGTH)


def decoder(**deltas):
    model = model_of(**deltas)
    return model, drawn(model, 0.4)


def texts(rows=2):
    return np.random.default_rng(0).integers(0, VOCAB, (rows, TOKENS + 1))


def window_by_window(model, params, tokens, window):
    """Nats per token when each is predicted by a forward pass of its own over the latest ones."""
    # Filled up behind, where nothing is seen, so that all compile once.
    losses = []
    for t in range(1, tokens.shape[1]):
        seen = tokens[:, max(0, t - window) : t]
        padded = np.pad(seen, ((0, 0), (0, window - seen.shape[1])))
        logits = np.asarray(forward(model, params, padded), np.float64)[:, seen.shape[1] - 1]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses.append(-log_p[np.arange(len(tokens)), tokens[:, t]].mean())
    return np.array(losses)


@pytest.mark.parametrize("together", [16_384, 2 * WINDOW * 4])
def test_recomputed_is_a_forward_pass_to_each_token(monkeypatch, together):
    """In one part, and in parts of which the last one is not full."""
    monkeypatch.setattr(stream_curves, "TOKENS_PER_DISPATCH", together)
    model, params = decoder()
    tokens, done = texts(), []
    found = recomputed_window_losses(model, params, tokens, WINDOW, done.append)
    np.testing.assert_allclose(
        found, window_by_window(model, params, tokens, WINDOW), rtol=1e-5, atol=1e-5
    )
    assert done == sorted(set(done)) and done[-1] == TOKENS
    np.testing.assert_allclose(
        full_attention_losses(model, params, tokens[:, : WINDOW + 1]), found[:WINDOW]
    )


def test_in_one_layer_a_cache_without_sinks_is_the_window_read_anew(monkeypatch):
    """What is kept of a token is made of that token alone, and places are those of the window."""
    monkeypatch.setattr(stream_curves, "CHUNK", 5)
    model, params = decoder(model__num_layers=1)
    tokens, done = texts(), []
    cached = streaming_losses(streaming(model, WINDOW, 0), params, tokens, done.append)
    anew = window_by_window(model, params, tokens, WINDOW)
    np.testing.assert_allclose(cached, anew, rtol=1e-5, atol=1e-5)
    assert done == [5, 10, 15, 20, TOKENS]
    kept = streaming_losses(streaming(model, WINDOW, 2), params, tokens, done.append)
    np.testing.assert_allclose(kept[:WINDOW], anew[:WINDOW], rtol=1e-5, atol=1e-5)
    assert np.abs(kept[WINDOW:] - anew[WINDOW:]).min() > 1e-4


def test_each_number_of_sinks_is_a_model_and_a_state_of_fixed_size_is_one():
    model = model_of()
    assert [(n, s) for n, s, _ in stream_models(model, 6, (0, 1, 4))] == [
        ("0 sinks", 0),
        ("1 sink", 1),
        ("4 sinks", 4),
    ]
    recurrent = model_of(model__mixer="linear", model__position="none")
    assert stream_models(recurrent, 6, (0, 4)) == [("recurrent state", -1, recurrent)]
    mixed = model_of(model__pattern=("", "mixer=linear, position=none"))
    assert [s for _, s, _ in stream_models(mixed, 6, (0, 4))] == [0, 4]


def test_pieces_do_not_overlap_and_reach_the_end():
    text = np.arange(47)
    for most, number in ((1, 1), (3, 3), (9, 4)):
        found = text_pieces(text, 10, most)
        assert found.shape == (number, 11) and (np.diff(found, axis=1) == 1).all()
        assert (np.diff(found[:, 0]) >= 11).all() and found[0, 0] == 0
        assert number == 1 or found[-1, -1] == 46
    with pytest.raises(UserError, match=r"--tokens=47: the text has 47 tokens; give at most 46"):
        text_pieces(text, 47, 1)


@pytest.mark.parametrize("last", [1, 2, 7, 64, 1000, 4096])
def test_bins_cover_every_position_once(last):
    bins = position_bins(last)
    assert [p for low, high in bins for p in range(low, high + 1)] == list(range(1, last + 1))
    assert len(bins) <= 4 * math.log2(last) + 2


def test_means_of_bins_and_numbers_of_curves():
    losses = np.log(np.array([9.0, 9.0, 9.0, 2.0, 8.0]))
    curves = [
        Curve("0 sinks", 0, losses),
        Curve("1 sink", 1, np.zeros(5)),
        Curve("dense", -1, np.log(np.array([2.0, 4.0, 4.0]))),
    ]
    assert bin_means(losses, [(1, 3), (4, 5)]) == pytest.approx([math.log(9), math.log(4)])
    assert bin_means(losses[:4], [(1, 3), (4, 5)]) == pytest.approx([math.log(9)])
    without, kept, short = summaries(curves, 3)
    assert without == pytest.approx((4, 5, math.log(4), 4.0, 4.0))
    assert kept == (4, 5, 0.0, 1.0, 1.0)
    assert short[:2] == (1, 3) and short.perplexity == pytest.approx(32 ** (1 / 3))
    assert math.isnan(short.ratio), "it was not measured where the others were"
