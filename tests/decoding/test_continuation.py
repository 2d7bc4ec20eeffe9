"""Continuations against a decoder that recomputes everything, and sampling against brute force."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.decoding.continuation import CHUNK, continuation
from research.decoding.sampling import Sampling, draw, restrict
from research.decoding.streaming import stream_scores, streaming
from research.errors import UserError
from research.models.registry import make_model
from tests import small
from tests.decoding.toy import drawn

GREEDY = Sampling(temperature=0.0)
VOCAB, LENGTH = 16, 64


def decoder(**deltas):
    config = small.recall(**deltas)
    model = make_model(config.model, VOCAB, LENGTH)
    return model, drawn(model, 0.4)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    return model.apply({"params": params}, tokens)[0]


def collect(model, params, prompt, tokens, sampling, seed=0):
    chunks = continuation(model, params, prompt, tokens, sampling, jax.random.key(seed))
    return np.concatenate([chunk.tokens for chunk in chunks], axis=1)


def recomputed(model, params, prompt, tokens):
    """Greedy decoding that runs the whole sequence through the model for every token."""
    text = np.asarray(prompt)
    for _ in range(tokens):
        padded = np.pad(text, ((0, 0), (0, LENGTH - text.shape[1])))
        last = np.asarray(forward(model, params, padded))[:, text.shape[1] - 1]
        text = np.concatenate([text, last.argmax(-1)[:, None]], axis=1)
    return text[:, prompt.shape[1] :]


@pytest.mark.parametrize(
    "deltas",
    [
        {},
        {"model__mask": "window", "model__window": 5},
        {"model__position": "alibi", "model__num_kv_heads": 1},
        {"model__position": "learned"},
        {"model__mixer": "linear", "model__position": "none"},
        {"model__mixer": "gated_convolution", "model__position": "none"},
    ],
    ids=str,
)
def test_greedy_equals_recomputing_every_token(deltas):
    model, params = decoder(**deltas)
    prompt = np.random.default_rng(0).integers(0, VOCAB, (2, 7))
    tokens = 2 * CHUNK + 3
    wanted = recomputed(model, params, prompt, tokens)
    assert len(np.unique(wanted)) > 1, "a constant continuation would prove little"
    np.testing.assert_array_equal(collect(model, params, prompt, tokens, GREEDY), wanted)


def test_past_its_length_it_goes_on_from_the_last_half():
    model, params = decoder()
    prompt = np.random.default_rng(1).integers(0, VOCAB, (2, LENGTH - CHUNK))
    first = collect(model, params, prompt, CHUNK, GREEDY)
    both = collect(model, params, prompt, 2 * CHUNK, GREEDY)
    np.testing.assert_array_equal(both[:, :CHUNK], first)
    kept = np.concatenate([prompt, first], axis=1)[:, -LENGTH // 2 :]
    np.testing.assert_array_equal(both[:, CHUNK:], recomputed(model, params, kept, CHUNK))


def test_a_prompt_that_is_too_long_is_cut_at_the_front():
    model, params = decoder()
    prompt = np.random.default_rng(2).integers(0, VOCAB, (2, 3 * LENGTH))
    fits = prompt[:, -(LENGTH - CHUNK) :]
    np.testing.assert_array_equal(
        collect(model, params, prompt, 5, GREEDY), collect(model, params, fits, 5, GREEDY)
    )


@pytest.mark.parametrize("tokens", [1, CHUNK, CHUNK + 1])
def test_as_many_tokens_as_asked_and_reproducible(tokens):
    model, params = decoder()
    prompt = np.zeros((2, 1), np.int32)
    found = collect(model, params, prompt, tokens, Sampling(), seed=5)
    assert found.shape == (2, tokens)
    np.testing.assert_array_equal(found, collect(model, params, prompt, tokens, Sampling(), 5))
    if tokens > 1:
        assert (found != collect(model, params, prompt, tokens, Sampling(), 6)).any()
        assert (found[0] != found[1]).any()


logits_rows = st.lists(
    st.floats(-8, 8, width=32), min_size=2, max_size=12, unique_by=lambda x: round(x, 2)
)


@settings(deadline=None, max_examples=60)
@given(logits_rows, st.integers(0, 14), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_restriction_against_sorting_by_hand(row, top_k, top_p, temperature):
    sampling = Sampling(temperature, top_k, top_p)
    # What cannot be fills the row up: all rows have one shape.
    filled = np.array([[*row, *[-np.inf] * (12 - len(row))]], np.float32)
    got = np.asarray(restrict(filled, sampling))[0]
    scaled = np.array(row, np.float64) / temperature
    order = np.argsort(-scaled)
    kept = list(order[: top_k or None])
    p = np.exp(scaled[kept] - scaled.max())
    p /= p.sum()
    before = np.cumsum(p) - p
    allowed = {k for k, b in zip(kept, before, strict=True) if b < top_p}
    # At the edge of the nucleus float32 and float64 may fall on different sides.
    edge = {k for k, b in zip(kept, before, strict=True) if abs(b - top_p) < 1e-5}
    found = set(np.flatnonzero(np.isfinite(got)))
    assert found - edge == allowed - edge
    assert order[0] in found


def test_draws_follow_the_tempered_distribution():
    n, temperature = 20_000, 0.7
    logits = np.tile(np.array([0.0, 1.0, 2.0, -1.0], np.float32), (n, 1))
    sampling = Sampling(temperature, top_k=3)
    tokens = jax.jit(draw, static_argnums=2)(jax.random.key(0), logits, sampling)
    p = np.exp(np.array([0.0, 1.0, 2.0]) / temperature)
    expected = np.append(p / p.sum(), 0.0)
    found = np.bincount(np.asarray(tokens), minlength=4) / n
    assert found[3] == 0
    np.testing.assert_allclose(found, expected, atol=4 * np.sqrt(0.25 / n))


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}])
def test_values_out_of_range_are_named(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"--{name}"):
        Sampling(**wrong)


def test_a_stream_goes_on_without_starting_again():
    """Greedy tokens of a rolling cache are the most probable ones of the stream's own scores."""
    model, params = decoder(model__position="rope")
    model = streaming(model, 8, 2)
    prompt = np.random.default_rng(3).integers(0, VOCAB, (2, 11))
    chunks = list(continuation(model, params, prompt, 40, GREEDY, jax.random.key(0), True))
    written = np.concatenate([chunk.tokens for chunk in chunks], axis=1)
    assert written.shape == (2, 40) and len(np.unique(written)) > 1
    whole = np.concatenate([prompt, written], axis=1)
    scores = stream_scores(model, params, whole)
    assert (np.asarray(scores.rank)[:, 10:] == 0).all()
    found = np.concatenate([chunk.scores.log_prob for chunk in chunks], axis=1)
    np.testing.assert_allclose(found, np.asarray(scores.log_prob)[:, 10:], atol=1e-5)
