"""Beam search against enumeration of every sequence, greedy search against whole forward passes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.decoding import decode as decoding
from research.decoding.beam_search import SHARED, batch_axes, beam_search, encode_sources, take_rows
from research.decoding.decode import decode_all, padded, static_lengths
from research.decoding.sampling import Sampling
from research.decoding.search import Search
from research.errors import UserError
from research.tasks.task import BOS, EOS
from tests.decoding.exhaustive import (
    LENGTH,
    VOCAB,
    WORDS,
    assert_best,
    enumerated,
    forward,
    recomputed,
)
from tests.decoding.toy import make_toy, sources


def decode(*args):
    """What `research.decoding.decode.decode` returns, as arrays of NumPy."""
    return jax.device_get(decoding.decode(*args))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def by_beam(model, params, source, lengths, search, limit):
    """Beam search, which `decode` does not do for a beam of one."""
    decoder = encode_sources(model, params, source, lengths, search.beam, limit, search.ctc_weight)
    return beam_search(decoder, search, limit)


@functools.partial(jax.jit, static_argnums=0)
def step_by_step(model, params, source, length, tokens):
    """How each of the tokens (T, 1) that are fed to the model reads the source, (T, 1, H, S)."""
    variables = {"params": params}
    memory = model.apply(variables, source, length, method="encode")
    state = model.apply(variables, memory, len(tokens), method="init_state")

    def step(state, token):
        _, state, weights = model.apply(variables, memory, state, token, method="step")
        return state, weights

    return jax.lax.scan(step, state, tokens)[1]


@pytest.mark.parametrize(
    ("alpha", "beta"), [(0.0, 0.0), (0.6, 0.0), (1.0, 0.3), (0.0, 0.5)], ids=str
)
def test_a_wide_beam_finds_what_enumeration_finds(alpha, beta):
    # At most 16 live prefixes, so 48 candidates a step, and 31 hypotheses in all.
    search = Search(beam=48, nbest=12, length_penalty=alpha, coverage_penalty=beta)
    for seed in range(3):
        model, params = make_toy(seed, vocab_size=VOCAB, length=LENGTH)
        source, lengths = sources(seed, 4, 4, VOCAB)
        found = decode(model, params, source, lengths, search)
        for row in range(4):
            wanted = enumerated(model, params, source[row], lengths[row], search)
            assert_best(found, row, wanted)


def test_penalties_change_what_is_best():
    # Else the test above would pass without them.
    best = []
    for alpha, beta in ((0.0, 0.0), (0.6, 0.0), (0.0, 0.5)):
        search = Search(beam=48, nbest=12, length_penalty=alpha, coverage_penalty=beta)
        found = []
        for seed in range(20):
            model, params = make_toy(seed, vocab_size=VOCAB, length=LENGTH)
            source, lengths = sources(seed, 4, 4, VOCAB)
            found.append(decode(model, params, source, lengths, search).tokens[:, 0])
        best.append(np.stack(found))
    assert (best[0] != best[1]).any() and (best[0] != best[2]).any()


def test_a_shorter_limit_forces_the_end():
    model, params = make_toy(0, vocab_size=VOCAB, length=LENGTH)
    source, lengths = sources(0, 4, 4, VOCAB)
    for limit in (1, 2):
        search = Search(beam=16, nbest=1, max_length=limit)
        found = decode(model, params, source, lengths, search)
        assert found.tokens.shape == (4, 1, limit)
        for row in range(4):
            wanted = enumerated(model, params, source[row], lengths[row], search, limit)
            assert_best(found, row, wanted)


def textbook_beam(model, params, source, length, width, limit, alpha):
    """Beam search with lists, whole forward passes, and no early end but that of K hypotheses."""
    live, ended = [(0.0, [])], []
    for t in range(limit):
        log_probs, _ = forward(model, params, source, length, [[*w, 0] for _, w in live])
        words = [EOS] if t == limit - 1 else [EOS, *range(3, model.config.vocab_size)]
        candidates = sorted(
            ((s + log_probs[i, t, v], [*w, v]) for i, (s, w) in enumerate(live) for v in words),
            key=lambda item: -item[0],
        )
        ended += [
            (s / ((5 + t + 1) / 6) ** alpha, w) for s, w in candidates[:width] if w[-1] == EOS
        ]
        live = [(s, w) for s, w in candidates if w[-1] != EOS][:width]
        if len(ended) >= width or not live:
            break
    return max(ended, key=lambda item: item[0])


FAST = ((2, 1.0), (3, 0.0), (5, 1.0))
"""Widths and penalties of the length; the others run among the slow tests."""


@pytest.mark.parametrize(
    ("width", "alpha"),
    [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in itertools.product((2, 3, 5), (0.0, 1.0))
    ],
)
def test_a_narrow_beam_equals_a_textbook_one(width, alpha):
    model, params = make_toy(3, vocab_size=12, length=8)
    source, lengths = sources(3, 8, 6, 12)
    search = Search(beam=width, length_penalty=alpha)
    found = decode(model, params, source, lengths, search)
    for row in range(8):
        score, tokens = textbook_beam(model, params, source[row], lengths[row], width, 8, alpha)
        np.testing.assert_array_equal(found.tokens[row, 0, : len(tokens)], tokens)
        np.testing.assert_allclose(found.scores[row, 0], score, rtol=1e-4, atol=1e-4)


def test_greedy_equals_recomputing_every_token_and_a_beam_of_one():
    model, params = make_toy(2, vocab_size=12, length=10)
    source, lengths = sources(2, 16, 7, 12)
    found = decode(model, params, source, lengths, Search())
    wanted = recomputed(model, params, source, lengths, 10)
    assert len({tuple(row) for row in wanted}) > 4, "equal sentences would prove little"
    np.testing.assert_array_equal(found.tokens[:, 0], wanted)
    for alpha in (0.0, 1.0):
        search = Search(length_penalty=alpha)
        beam = by_beam(model, params, source, lengths, search, 10)
        np.testing.assert_array_equal(beam.tokens, found.tokens)
        np.testing.assert_allclose(beam.log_probs, found.log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "search",
    [
        Search(),
        Search(beam=4, nbest=3, length_penalty=0.6, coverage_penalty=0.2),
        Search(nbest=2, sampling=Sampling(temperature=0.7, top_k=5)),
    ],
    ids=["greedy", "beam", "sampling"],
)
def test_a_sentence_is_decoded_alike_in_any_company(search):
    model, params = make_toy(4, vocab_size=20, length=12)
    source, lengths = sources(4, 11, 9, 20)
    alone = decode_all(model, params, source, lengths, search, 1, seed=5)
    together = decode_all(model, params, source, lengths, search, 16, seed=5, lengths=(12,))
    assert len({tuple(row[0].tokens) for row in alone}) > 3
    for one, other in zip(alone, together, strict=True):
        assert len(one) == len(other) == search.nbest
        assert [h.tokens for h in one] == [h.tokens for h in other]
        np.testing.assert_allclose([h.score for h in one], [h.score for h in other], rtol=1e-4)


def test_weights_are_those_of_the_steps_that_found_the_hypothesis():
    model, params = make_toy(0, vocab_size=12, length=8)
    source, lengths = sources(6, 5, 6, 12)
    search = Search(beam=3, nbest=2)
    found = decode_all(model, params, source, lengths, search, with_weights=True)
    for i, row in enumerate(found):
        one = (source[i : i + 1], lengths[i : i + 1])
        for hypothesis in row:
            number = len(hypothesis.tokens) + 1
            tokens = np.zeros((8, 1), np.int32)
            tokens[:number, 0] = [BOS, *hypothesis.tokens]
            weights = np.asarray(step_by_step(model, params, *one, tokens))[:number, 0]
            assert hypothesis.weights.shape == (2, number, lengths[i])
            np.testing.assert_allclose(
                hypothesis.weights, weights[..., : lengths[i]].swapaxes(0, 1), atol=1e-5
            )


def test_samples_follow_the_probabilities_of_the_model():
    model, params = make_toy(0, vocab_size=VOCAB, length=3)
    source, lengths = sources(0, 1, 3, VOCAB)
    number = 4000
    search = Search(nbest=number, sampling=Sampling())
    (row,) = decode_all(model, params, source, lengths, search, seed=1)
    # PAD and BOS are left out before the draw, and the last token is EOS for certain.
    logs, _ = forward(model, params, source[0], lengths[0], [[w, EOS] for w in WORDS])
    first = np.exp(logs[0, 0, [EOS, *WORDS]])
    first /= first.sum()
    counts = [sum(h.tokens[:1] == start for h in row) / number for start in ([], [3], [4])]
    np.testing.assert_allclose(counts, first, atol=4 * 0.5 / number**0.5)
    assert max(len(h.tokens) for h in row) == 2


def test_a_model_without_attention_is_decoded_but_has_no_coverage():
    model, params = make_toy(0, vocab_size=12, length=6, heads=0)
    source, lengths = sources(0, 3, 4, 12)
    found = decode_all(model, params, source, lengths, Search(beam=2), with_weights=True)
    assert all(row[0].weights.shape[0] == 0 for row in found)
    for beam in (1, 2):
        with pytest.raises(UserError, match="--coverage_penalty=0.5 .* no attention"):
            decode(model, params, source, lengths, Search(beam=beam, coverage_penalty=0.5))


def test_a_broken_model_still_gives_every_sentence_an_answer():
    model, params = make_toy(0, vocab_size=12, length=6)
    params = jax.tree.map(lambda p: p * np.nan, params)
    source, lengths = sources(0, 3, 4, 12)
    for beam in (1, 2):
        found = decode_all(model, params, source, lengths, Search(beam=beam))
        assert [len(row) for row in found] == [1, 1, 1]


def test_rows_are_reordered_along_the_axis_that_is_the_batch():
    def init(size):
        return {"a": jnp.zeros((size, 2)), "b": jnp.zeros((3, size)), "c": jnp.zeros(2)}

    axes = batch_axes(init)
    assert axes == {"a": 0, "b": 1, "c": SHARED}
    tree = {"a": np.arange(6).reshape(3, 2), "b": np.arange(6).reshape(2, 3), "c": np.arange(3)}
    taken = jax.jit(lambda tree, rows: take_rows(tree, axes, rows))(tree, np.array([2, 0, 2]))
    np.testing.assert_array_equal(taken["a"], [[4, 5], [0, 1], [4, 5]])
    np.testing.assert_array_equal(taken["b"], [[2, 0, 2], [5, 3, 5]])
    np.testing.assert_array_equal(taken["c"], [0, 1, 2])
    with pytest.raises(ValueError, match="is the batch"):
        batch_axes(lambda size: jnp.zeros(2 * size))


def test_few_shapes():
    assert static_lengths(64) == [8, 16, 32, 64]
    assert static_lengths(50) == [8, 16, 32, 50]
    assert static_lengths(5) == [5]
    source, lengths = padded([[3, 2], [2], [4, 5, 2]])
    assert source.tolist() == [[3, 2, 0], [2, 0, 0], [4, 5, 2]]
    assert lengths.tolist() == [2, 1, 3]
    model, params = make_toy(0, vocab_size=12, length=6)
    assert decode_all(model, params, *padded([]), Search()) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam": 0}, "--beam=0 "),
        ({"nbest": 2}, "--nbest=2 .*--beam=1"),
        ({"nbest": 0}, "--nbest=0 "),
        ({"length_penalty": -0.1}, "--length_penalty=-0.1 "),
        ({"coverage_penalty": -1.0}, "--coverage_penalty=-1.0 "),
        ({"length_penalty": float("nan")}, "--length_penalty=nan "),
        ({"max_length": -1}, "--max_length=-1 "),
        ({"beam": 2, "sampling": Sampling()}, "--beam=2 .*--temperature=1.0"),
    ],
)
def test_a_search_that_cannot_be_is_one_line(values, message):
    with pytest.raises(UserError, match=message):
        Search(**values)


def test_a_hypothesis_longer_than_the_model_is_refused():
    with pytest.raises(UserError, match="--max_length=9 .* 8"):
        Search(max_length=9).limit(8)
