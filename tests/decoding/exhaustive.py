"""What decoding must find: every sequence enumerated, every token from a whole forward pass."""

import functools
import itertools
import math

import jax
import numpy as np

from research.decoding.search import LEAST_COVERAGE
from research.tasks.task import BOS, EOS, PAD

VOCAB, LENGTH = 5, 5
WORDS = range(3, VOCAB)
ROWS = 32
"""Hypotheses to a forward pass; fewer are filled up, so that it is compiled once."""


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, batch):
    logits = model.apply({"params": params}, batch, method="forward")
    weights = model.apply({"params": params}, batch, method="weights")
    return jax.nn.log_softmax(logits), weights


def forward(model, params, source, length, hypotheses):
    """Log probabilities (N, T, V) and weights (N, H, T, S) of hypotheses after one source."""
    inputs = np.zeros((ROWS, model.config.length), np.int32)
    for row, tokens in zip(inputs, hypotheses, strict=False):
        row[: len(tokens)] = [BOS, *tokens[:-1]]
    assert len(hypotheses) <= ROWS
    batch = {
        "source": np.repeat(source[None], ROWS, axis=0),
        "source_length": np.full(ROWS, length),
    }
    return jax.device_get(run(model, params, batch | {"inputs": inputs, "targets": inputs}))


def enumerated(model, params, source, length, search, limit=LENGTH, words=WORDS):
    """Every hypothesis of at most `limit` tokens, [(score, log probability, tokens)] best first."""
    every = [[*w, EOS] for n in range(limit) for w in itertools.product(words, repeat=n)]
    log_probs, weights = forward(model, params, source, length, every)
    found = []
    for row, tokens in enumerate(every):
        n = len(tokens)
        log_prob = sum(float(log_probs[row, t, token]) for t, token in enumerate(tokens))
        score = log_prob / ((5 + n) / 6) ** search.length_penalty
        if search.coverage_penalty:
            read = weights[row, :, :n, :length].mean(0).sum(0)
            read = [min(max(float(r), LEAST_COVERAGE), 1.0) for r in read]
            score += search.coverage_penalty * sum(map(math.log, read))
        found.append((score, log_prob, tokens))
    return sorted(found, key=lambda item: -item[0])


def assert_best(found, row, wanted):
    """The hypotheses of a row are the best of all, in order."""
    found = jax.device_get(found)
    for n in range(found.tokens.shape[1]):
        score, log_prob, tokens = wanted[n]
        assert found.lengths[row, n] == len(tokens)
        np.testing.assert_array_equal(found.tokens[row, n, : len(tokens)], tokens)
        assert not found.tokens[row, n, len(tokens) :].any(), "nothing follows EOS"
        np.testing.assert_allclose(found.scores[row, n], score, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.log_probs[row, n], log_prob, rtol=1e-4, atol=1e-4)


def recomputed(model, params, source, lengths, limit):
    """Greedy tokens by running everything so far through the model for every token."""
    size = len(source)
    inputs, tokens = np.zeros((size, limit), np.int32), np.zeros((size, limit), np.int32)
    inputs[:, 0], ended = BOS, np.zeros(size, bool)
    batch = {"source": source, "source_length": lengths}
    for t in range(limit):
        logits = np.array(run(model, params, batch | {"inputs": inputs, "targets": inputs})[0])[
            :, t
        ]
        logits[:, [PAD, BOS]] = -np.inf
        tokens[:, t] = np.where(ended, PAD, EOS if t == limit - 1 else logits.argmax(-1))
        ended |= tokens[:, t] == EOS
        if t + 1 < limit:
            inputs[:, t + 1] = np.where(ended, PAD, tokens[:, t])
    return tokens
