"""Measures of heads against scipy, loops, and heads whose pattern is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from research.interpret.head_metrics import MEASURES
from research.interpret.heads import head_measures
from tests.compiled import compiled

confidence = compiled(head_measures.confidence)
diagonality = compiled(head_measures.diagonality)
distance = compiled(head_measures.distance)
duplicate_token = compiled(head_measures.duplicate_token)
entropy = compiled(head_measures.entropy)
induction = compiled(head_measures.induction)
normalized_entropy = compiled(head_measures.normalized_entropy)
previous_token = compiled(head_measures.previous_token)
sink = compiled(head_measures.sink)

T = 6
CAUSAL = np.tril(np.ones((T, T), bool))
ALL = np.ones((T, T), bool)


@compiled
def every_measure(weights, visible, tokens=None, rows=None):
    """All measures of self-attention, by name; those of tokens only if there are some."""
    part = SimpleNamespace(sites={"weights": weights, "visible": visible})
    return {
        name: measure.compute(part, rows, tokens)
        for name, measure in MEASURES.items()
        if measure.kind == "self" and not (measure.tokens and tokens is None)
    }


def values(sums):
    return np.asarray(sums.total) / np.asarray(sums.count)


def value(sums):
    return float(values(sums)[0])


def random_heads(seed, batch=2, heads=3, causal=True):
    weights = np.random.default_rng(seed).random((batch, heads, T, T)) + 0.01
    weights *= CAUSAL if causal else ALL
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def one_head(sources):
    """A head (1, 1, T, S) that reads one position in each row; None: nothing."""
    weights = np.zeros((1, 1, len(sources), len(sources)), np.float32)
    for t, s in enumerate(sources):
        if s is not None:
            weights[0, 0, t, s] = 1
    return weights


def by_loop(weights, row, counts=lambda t: True):
    """The mean over batch and rows of row(weights of the row, t), for each head."""
    batch, heads, rows, _ = weights.shape
    found = [
        [row(weights[b, h, t], t) for b in range(batch) for t in range(rows) if counts(t)]
        for h in range(heads)
    ]
    return np.mean(found, axis=1)


def test_measures_of_a_row_are_those_of_loops():
    weights = random_heads(0)
    expected = {
        "entropy": by_loop(weights, lambda w, t: scipy.stats.entropy(w)),
        "normalized_entropy": by_loop(
            weights, lambda w, t: scipy.stats.entropy(w, base=t + 1), lambda t: t > 0
        ),
        "confidence": by_loop(weights, lambda w, t: max(w)),
        "distance": by_loop(weights, lambda w, t: sum(w[s] * abs(t - s) for s in range(T))),
        "diagonality": by_loop(
            weights, lambda w, t: 1 - sum(w[s] * (t - s) / t for s in range(t)), lambda t: t > 0
        ),
        "previous_token": by_loop(weights, lambda w, t: w[t - 1], lambda t: t > 0),
        "sink": by_loop(weights, lambda w, t: w[0], lambda t: t > 0),
    }
    scores = every_measure(weights, CAUSAL)
    assert scores.keys() == expected.keys()
    for name, of_heads in expected.items():
        assert scores[name].count.shape == (3,)
        np.testing.assert_allclose(values(scores[name]), of_heads, rtol=1e-5, err_msg=name)


def test_diagonality_of_both_sides_divides_by_the_further_end():
    weights = random_heads(1, causal=False)
    expected = by_loop(
        weights,
        lambda w, t: 1 - sum(w[s] * abs(t - s) for s in range(T)) / max(t, T - 1 - t),
    )
    np.testing.assert_allclose(values(diagonality(weights, ALL)), expected, rtol=1e-5)


def test_ends_of_the_scales():
    uniform = (CAUSAL / CAUSAL.sum(-1, keepdims=True))[None, None]
    own, first = one_head(range(T)), one_head([0] * T)
    assert value(normalized_entropy(uniform, CAUSAL)) == pytest.approx(1)
    assert value(normalized_entropy(own, CAUSAL)) == 0 == value(entropy(own))
    assert value(diagonality(own, CAUSAL)) == 1 == value(confidence(own))
    assert value(diagonality(first, CAUSAL)) == pytest.approx(0, abs=1e-6)
    assert value(sink(first)) == 1 > value(sink(uniform)) > value(sink(own)) == 0
    assert value(previous_token(one_head([None, 0, 1, 2, 3, 4]))) == 1
    assert value(previous_token(own)) == 0


TOKENS = np.array([[7, 8, 9, 7, 8, 7]])


def test_an_induction_head_reads_what_followed():
    """Rows 3, 4 and 5 repeat 0, 1 and 0 or 3: 1, 2 and 1 or 4 followed."""
    found = induction(one_head([None, 0, 0, 1, 2, 4]), TOKENS)
    assert (value(found), float(found.count[0])) == (1, 3)
    assert value(induction(one_head([0, 0, 0, 1, 2, 1]), TOKENS)) == 1
    # One of three rows reads the occurrence itself instead.
    assert value(induction(one_head([0, 0, 0, 1, 1, 1]), TOKENS)) == pytest.approx(2 / 3)


def test_a_duplicate_token_head_reads_the_same_token():
    found = duplicate_token(one_head([0, 1, 2, 0, 1, 3]), TOKENS)
    assert (value(found), float(found.count[0])) == (1, 3)
    assert value(duplicate_token(one_head(range(T)), TOKENS)) == 0
    assert value(duplicate_token(one_head([0, 0, 0, 1, 2, 4]), TOKENS)) == 0


@pytest.mark.parametrize("name", ["duplicate_token", "induction"])
def test_measures_of_tokens_are_those_of_loops(name):
    generator = np.random.default_rng(3)
    weights, tokens = random_heads(2, batch=4), generator.integers(0, 3, (4, T))
    shift = {"duplicate_token": 0, "induction": 1}[name]
    expected = []
    for h in range(3):
        rows = []
        for b in range(4):
            for t in range(T):
                earlier = [s for s in range(t) if tokens[b, s] == tokens[b, t]]
                if earlier:
                    rows.append(sum(weights[b, h, t, s + shift] for s in earlier))
        expected.append(np.mean(rows))
    found = {"duplicate_token": duplicate_token, "induction": induction}[name](weights, tokens)
    np.testing.assert_allclose(values(found), expected, rtol=1e-5)


def test_without_a_repetition_no_row_counts():
    sums = induction(random_heads(0, batch=1), np.arange(T)[None])
    assert sums.count.tolist() == sums.total.tolist() == [0, 0, 0]


def test_rows_that_do_not_count_change_nothing():
    weights, tokens = random_heads(4), np.array([[1, 2, 1, 2, 1, 2], [1, 1, 2, 1, 2, 2]])
    rows = np.array([[True] * 4 + [False] * 2, [True] * 6])
    expected = every_measure(weights, CAUSAL, tokens, rows)
    other = np.where(rows[:, None, :, None], weights, random_heads(5))
    assert (other != weights).any()
    found = every_measure(other, CAUSAL, tokens, rows)
    nothing = every_measure(np.where(rows[:, None, :, None], weights, 0), CAUSAL, tokens)
    masked = every_measure(np.where(rows[:, None, :, None], weights, np.nan), CAUSAL, tokens)
    for name in expected:
        for scores in (found, nothing, masked):
            np.testing.assert_allclose(scores[name].total, expected[name].total, rtol=1e-6)
            np.testing.assert_array_equal(scores[name].count, expected[name].count)


def test_sums_add_up_over_batches_and_layers_are_a_batch_axis():
    weights, tokens = random_heads(6), np.array([[1, 2, 1, 2, 1, 2], [1, 1, 2, 1, 2, 2]])
    whole = every_measure(weights, CAUSAL, tokens)
    parts = [every_measure(weights[b : b + 1], CAUSAL, tokens[b : b + 1]) for b in range(2)]
    for name, sums in whole.items():
        np.testing.assert_allclose(sums.total, sum(p[name].total for p in parts), rtol=1e-5)
        np.testing.assert_array_equal(sums.count, sum(p[name].count for p in parts))


def test_shares_do_not_depend_on_what_rows_sum_to():
    weights = random_heads(7)
    for measure in (entropy, distance):
        np.testing.assert_allclose(values(measure(weights / 3)), values(measure(weights)), 1e-5)
    np.testing.assert_allclose(values(sink(weights / 3)), values(sink(weights)) / 3, 1e-5)
    # What differences of attention take away is no part of a distribution.
    signed = np.where(CAUSAL, weights, -1.0)
    np.testing.assert_allclose(values(entropy(signed)), values(entropy(weights)), 1e-5)


def test_confidence_leaves_out_keys():
    weights = one_head([5] * T)
    weights[..., 2] = 0.25
    assert value(confidence(weights)) == 1
    keys = np.array([[True] * 5 + [False]])
    assert value(confidence(weights, keys=keys)) == pytest.approx(0.25)
