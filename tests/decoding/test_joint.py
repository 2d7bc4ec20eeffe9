"""Frames as sources, CTC beside attention, and CTC alone, against enumeration."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from research.decoding.beam_search import encode_sources
from research.decoding.decode import decode_all
from research.decoding.sampling import Sampling
from research.decoding.search import Search
from research.errors import UserError
from research.tasks.task import BOS, EOS, PAD
from tests.decoding.exhaustive import LENGTH, VOCAB, enumerated, forward
from tests.decoding.test_decode import by_beam, decode
from tests.decoding.toy import frames, make_listening, make_toy, sources

JOINT = {"vocab_size": VOCAB, "length": LENGTH, "ctc_weight": 0.5}
ALONE = JOINT | {"ctc_weight": 1.0}


@functools.partial(jax.jit, static_argnums=0)
def ctc_of(model, params, source, lengths):
    memory = model.apply({"params": params}, source, lengths, method="encode")
    return model.apply({"params": params}, memory, method="ctc")


def frames_of(model, params, source, lengths):
    return jax.device_get(ctc_of(model, params, source, lengths))


@jax.jit
def optax_log_probs(frames, missing, labels, beyond):
    return -optax.ctc_loss(frames, missing, labels, beyond, blank_id=PAD)


def ctc_log_probs(frames, number, labellings):
    """Log probabilities of labellings of one row of frames (S, V), by Optax."""
    labels = np.zeros((len(labellings), LENGTH), np.int32)
    for row, labelling in zip(labels, labellings, strict=True):
        row[: len(labelling)] = labelling
    beyond = (labels == PAD).astype(np.float32)
    missing = np.tile(np.arange(len(frames)) >= number, (len(labels), 1)).astype(np.float32)
    repeated = np.repeat(np.maximum(frames, -1e5)[None], len(labels), axis=0)
    return np.asarray(optax_log_probs(repeated, missing, labels, beyond), np.float64)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_a_wide_beam_finds_what_enumeration_finds(weight):
    search = Search(beam=48, nbest=6, ctc_weight=weight, length_penalty=0.6)
    model, _ = make_listening(0, **JOINT)
    changed = spelled = 0
    for seed in range(3):
        params = make_listening(seed, **JOINT)[1]
        source, lengths = frames(seed, 4, 12)
        found = decode(model, params, source, lengths, search)
        log_probs, numbers = frames_of(model, params, source, lengths)
        np.testing.assert_array_equal(found.positions, (lengths + 1) // 2)
        for row in range(4):
            by_attention = enumerated(model, params, source[row], lengths[row], Search(beam=48))
            words = [tokens for _, _, tokens in by_attention]
            ctc = ctc_log_probs(log_probs[row], numbers[row], [w[:-1] for w in words])
            wanted = []
            for (_, attention, tokens), log_prob in zip(by_attention, ctc, strict=True):
                total = (1 - weight) * attention + weight * log_prob
                wanted.append((total / ((5 + len(tokens)) / 6) ** 0.6, total, tokens))
            wanted.sort(key=lambda item: -item[0])
            changed += wanted[0][2] != by_attention[0][2]
            for n, (score, total, tokens) in enumerate(wanted[: search.nbest]):
                if total < -1000:  # Optax's floor for what so few frames cannot spell
                    assert found.lengths[row, n] == 0
                    continue
                spelled += 1
                assert found.tokens[row, n, : len(tokens)].tolist() == tokens
                np.testing.assert_allclose(found.scores[row, n], score, rtol=1e-3, atol=1e-3)
                np.testing.assert_allclose(found.log_probs[row, n], total, rtol=1e-3, atol=1e-3)
    assert spelled > 40 and (changed > 2)


def prefix_log_probs(frames, words):
    """{prefix: log p of all labellings that begin with it}, {labelling: log p}, over all paths."""
    begun, whole = {}, {}
    for path in itertools.product((PAD, *words), repeat=len(frames)):
        p = math.exp(sum(float(frames[t, label]) for t, label in enumerate(path)))
        labelling = tuple(label for label, _ in itertools.groupby(path) if label != PAD)
        whole[labelling] = whole.get(labelling, 0.0) + p
        for n in range(len(labelling) + 1):
            begun[labelling[:n]] = begun.get(labelling[:n], 0.0) + p
    return begun, whole


def textbook(model, params, source, length, log_probs, search):
    """Joint beam search with lists, whole forward passes and enumerated paths."""
    weight, words = search.ctc_weight, range(3, VOCAB)
    begun, whole = prefix_log_probs(log_probs, words)

    def ctc(prefix):
        known = whole.get(prefix[:-1], 0) if prefix[-1:] == (EOS,) else begun.get(prefix, 0)
        return math.log(known) if known else -math.inf

    live, ended = [(0.0, ())], []  # by attention alone
    for t in range(LENGTH):
        logs, _ = forward(model, params, source, length, [[*w, 0] for _, w in live])
        nexts = [EOS] if t == LENGTH - 1 else [EOS, *words]
        grown = [(s + logs[i, t, v], (*w, v)) for i, (s, w) in enumerate(live) for v in nexts]
        scored = [((1 - weight) * s + weight * ctc(w), s, w) for s, w in grown]
        scored = sorted((c for c in scored if c[0] > -math.inf), key=lambda c: -c[0])
        ended += [(c[0], c[2]) for c in scored[: search.beam] if c[2][-1] == EOS]
        live = [(s, w) for _, s, w in scored if w[-1] != EOS][: search.beam]
        if len(ended) >= search.beam or not live:
            break
    return max(ended)


@pytest.mark.parametrize("beam", [1, 2, 3])
def test_a_narrow_beam_equals_a_textbook_one(beam):
    search = Search(beam=beam, ctc_weight=0.4)
    model, params = make_listening(5, **JOINT)
    source, lengths = frames(5, 8, 10)
    log_probs, numbers = frames_of(model, params, source, lengths)
    found = jax.device_get(by_beam(model, params, source, lengths, search, LENGTH))
    for row, n in enumerate(numbers):
        score, tokens = textbook(
            model, params, source[row], lengths[row], log_probs[row, :n], search
        )
        assert found.tokens[row, 0, : len(tokens)].tolist() == list(tokens)
        np.testing.assert_allclose(found.log_probs[row, 0], score, rtol=1e-3, atol=1e-3)
    if beam == 1:
        greedy = decode(model, params, source, lengths, search)
        np.testing.assert_array_equal(greedy.tokens, found.tokens)
        np.testing.assert_allclose(greedy.log_probs, found.log_probs, rtol=1e-4, atol=1e-4)


def test_joint_scores_only_fall():
    # What the end of the search relies on: a live hypothesis is at least as good as its offspring.
    model, params = make_listening(1, vocab_size=9, length=6, ctc_weight=0.5)
    source, lengths = frames(1, 16, 20)
    tokens = np.random.default_rng(0).integers(3, 9, (5, 16))
    tokens[0] = BOS

    @jax.jit
    def scored(params):
        decoder = encode_sources(model, params, source, lengths, 1, 6, 0.7)

        def step(state, tokens):
            log_probs, state, _ = decoder.step(state, tokens)
            return state, log_probs

        return jax.lax.scan(step, decoder.state, jnp.asarray(tokens))[1]

    log_probs = np.asarray(scored(params))
    assert log_probs.shape == (5, 16, 9) and (log_probs <= 1e-4).all()


def test_a_recording_is_decoded_alike_in_any_company():
    search = Search(beam=3, nbest=2, ctc_weight=0.4)
    model, params = make_listening(4, vocab_size=12, length=9, ctc_weight=0.5)
    source, lengths = frames(4, 8, 15)
    alone, together = (
        decode_all(model, params, source, lengths, search, size, with_weights=True, lengths=shapes)
        for size, shapes in ((1, (15,)), (16, (24,)))
    )
    assert len({tuple(row[0].tokens) for row in alone}) > 3
    for one, other, n in zip(alone, together, lengths, strict=True):
        assert [h.tokens for h in one] == [h.tokens for h in other]
        for h, same in zip(one, other, strict=True):
            assert h.weights.shape == (2, len(h.tokens) + 1, (n + 1) // 2)
            np.testing.assert_allclose(h.weights.sum(-1), 1.0, rtol=1e-4)
            np.testing.assert_allclose(h.weights, same.weights, atol=1e-4)
            np.testing.assert_allclose(h.score, same.score, rtol=1e-4, atol=1e-4)


def test_ctc_alone_is_decoded_by_its_own_search():
    model, params = make_listening(2, **ALONE)
    source, lengths = frames(2, 8, 10)
    log_probs, numbers = frames_of(model, params, source, lengths)
    greedy = decode(model, params, source, lengths, Search())
    # 2 words and 5 frames: 63 labellings, most of them too long for four words and an end.
    wide = decode(model, params, source, lengths, Search(beam=63, nbest=40))
    seen = set()
    for row, n in enumerate(numbers):
        path = log_probs[row, :n].argmax(-1)
        wanted = [label for label, _ in itertools.groupby(path.tolist()) if label != PAD]
        wanted = wanted[: LENGTH - 1]
        seen.add(tuple(wanted))
        length = int(greedy.lengths[row, 0])
        assert greedy.tokens[row, 0].tolist() == [*wanted, EOS, *[PAD] * (LENGTH - len(wanted) - 1)]
        assert length == len(wanted) + 1 and greedy.positions[row] == n
        _, whole = prefix_log_probs(log_probs[row, :n], range(3, VOCAB))
        np.testing.assert_allclose(
            greedy.log_probs[row, 0], math.log(whole[tuple(wanted)]), rtol=1e-3, atol=1e-3
        )
        best = sorted(whole.items(), key=lambda item: -item[1])[:40]
        for i, (labelling, p) in enumerate(best):
            cut = labelling[: LENGTH - 1]
            length = int(wide.lengths[row, i])
            np.testing.assert_allclose(wide.scores[row, i], math.log(p), rtol=1e-3, atol=1e-3)
            assert wide.tokens[row, i, :length].tolist() == [*cut, EOS]
        assert not wide.lengths[row, len(whole) :].any()
    assert len(seen) > 3


def test_ctc_alone_through_whole_sets():
    model, params = make_listening(2, **ALONE)
    source, lengths = frames(3, 7, 10)
    search = Search(beam=4, nbest=2)
    few = decode_all(model, params, source, lengths, search, 3, lengths=(16,))
    direct = decode(model, params, source, lengths, search)
    for row, hypotheses in enumerate(few):
        for n, h in enumerate(hypotheses):
            assert h.tokens == direct.tokens[row, n, : direct.lengths[row, n] - 1].tolist()
    limited = decode(model, params, source, lengths, Search(max_length=1))
    assert limited.tokens.tolist() == [[[EOS]]] * 7


def test_the_best_of_rows_are_the_best_of_all():
    from research.decoding.beam_search import _best

    random = np.random.default_rng(0)
    for width, vocab, number in ((4, 30, 8), (5, 3, 10), (1, 7, 2)):
        # Few values, so that ties are common, and -inf in most rows.
        total = random.integers(-3, 0, (6, width, vocab)).astype(np.float32)
        total[random.random(total.shape) < 0.4] = -np.inf
        values, parent, token = jax.jit(_best, static_argnums=1)(total, number)
        wanted, index = jax.device_get(jax.lax.top_k(total.reshape(6, -1), number))
        np.testing.assert_array_equal(values, wanted)
        np.testing.assert_array_equal(parent, index // vocab)
        np.testing.assert_array_equal(token, index % vocab)


def test_searches_that_a_model_cannot_do():
    toy, params = make_toy(0, vocab_size=VOCAB, length=LENGTH)
    with pytest.raises(UserError, match=r"--ctc_weight=0.3 needs a model with CTC"):
        decode(toy, params, *sources(0, 2, 4, VOCAB), Search(ctc_weight=0.3))
    model, params = make_listening(0, **ALONE)
    source, lengths = frames(0, 2, 6)
    with pytest.raises(UserError, match=r"--temperature=1.0 .* CTC alone"):
        decode(model, params, source, lengths, Search(sampling=Sampling()))
    with pytest.raises(UserError, match=r"--ctc_weight=1.5 must be from 0 to 1"):
        Search(ctc_weight=1.5)
    with pytest.raises(UserError, match=r"--ctc_weight=0.5 .*--temperature=1.0"):
        Search(ctc_weight=0.5, sampling=Sampling())
