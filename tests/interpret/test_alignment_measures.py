"""Alignment measures against sets of links, loops and examples worked by hand."""

import numpy as np
import pytest
import scipy.stats

from research.interpret import alignment_measures
from tests.compiled import compiled

alignment_error = compiled(alignment_measures.alignment_error)
alignment_error_rate = compiled(alignment_measures.alignment_error_rate)
alignment_scores = compiled(alignment_measures.alignment_scores)
argmax_links = compiled(alignment_measures.argmax_links)
diagonality = compiled(alignment_measures.diagonality)
entropy = compiled(alignment_measures.entropy)
monotonicity = compiled(alignment_measures.monotonicity)
span_scores = compiled(alignment_measures.span_scores)


def ratio(sums):
    return float(sums.total) / float(sums.count)


def random_weights(generator, lengths, targets, sources):
    """Weights (B, T, S) that sum to 1 over the first `length` source positions of each row."""
    weights = generator.dirichlet(np.full(sources, 0.5), size=(len(lengths), targets))
    weights *= np.arange(sources) < np.array(lengths)[:, None, None]
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def links_of(matrix):
    return {tuple(index) for index in np.argwhere(matrix)}


def matrix_of(links, shape):
    matrix = np.zeros(shape, bool)
    for index in links:
        matrix[index] = True
    return matrix


@pytest.mark.parametrize("seed", range(5))
def test_error_rate_is_that_of_sets(seed):
    generator = np.random.default_rng(seed)
    shape = (3, 5, 7)
    links, sure, possible = (generator.random(shape) < p for p in (0.2, 0.15, 0.3))
    a, s = links_of(links), links_of(sure)
    p = links_of(possible) | s
    expected = 1 - (len(a & s) + len(a & p)) / (len(a) + len(s))
    assert 0 < expected < 1
    np.testing.assert_allclose(ratio(alignment_error_rate(links, sure, possible)), expected, 1e-6)
    expected = 1 - 2 * len(a & s) / (len(a) + len(s))
    np.testing.assert_allclose(ratio(alignment_error_rate(links, sure)), expected, 1e-6)


def test_error_rate_by_hand():
    """Three links of which one is sure and one possible, two sure ones: 1 - (1 + 2) / (3 + 2)."""
    shape = (3, 3)
    links = matrix_of([(0, 0), (1, 2), (2, 1)], shape)
    sure = matrix_of([(0, 0), (1, 1)], shape)
    possible = matrix_of([(1, 2)], shape)
    np.testing.assert_allclose(ratio(alignment_error_rate(links, sure, possible)), 0.4, 1e-6)
    # All sure links and only possible ones besides are perfect.
    whole = sure | possible
    assert ratio(alignment_error_rate(whole, sure, possible)) == 0
    assert ratio(alignment_error_rate(whole, sure)) == pytest.approx(1 - 4 / 5)


@pytest.mark.parametrize("seed", range(3))
def test_error_of_weights_counts_wrong_maxima(seed):
    generator = np.random.default_rng(seed)
    weights = random_weights(generator, [4, 6, 6], 5, 6)
    alignment = generator.integers(-1, 4, size=(3, 5))
    total = found = 0
    for row, origins in zip(weights, alignment, strict=True):
        for t, origin in enumerate(origins):
            if origin >= 0:
                total += 1
                found += int(max(range(6), key=lambda s: row[t, s]) == origin)
    sums = alignment_error(weights, alignment)
    np.testing.assert_allclose(ratio(sums), 1 - found / total, 1e-6)
    assert 0 < found < total


def test_right_and_wrong_weights_are_the_ends():
    alignment = np.array([[2, 0, 1, -1]])
    right = (alignment[..., None] == np.arange(4)).astype(np.float32)
    assert ratio(alignment_error(right, alignment)) == 0
    assert ratio(alignment_error(np.roll(right, 1, -1), alignment)) == 1
    # Whatever a target without a known link reads makes no difference.
    other = right.copy()
    other[:, 3] = [0, 0, 0, 1]
    assert alignment_error(other, alignment) == alignment_error(right, alignment)


def test_a_target_that_reads_nothing_has_no_link():
    """Two of three sure links found with two links: 1 - 2 * 2 / (2 + 3), not 1/3 or less."""
    alignment = np.array([[0, 1, 2]])
    weights = np.eye(3, dtype=np.float32)[None]
    weights[0, 0] = 0
    assert argmax_links(weights)[0, 0].sum() == 0
    assert ratio(alignment_error(weights, alignment)) == pytest.approx(0.2)


def test_diagonality_is_the_sum_of_its_definition():
    lengths, targets, width = np.array([3, 6]), np.array([5, 2]), 0.3
    weights = random_weights(np.random.default_rng(0), lengths, 5, 6)
    total = 0.0
    for b in range(2):
        for t in range(targets[b]):
            for s in range(6):
                distance = s / lengths[b] - t / targets[b]
                penalty = 1 - np.exp(-(distance**2) / (2 * width**2))
                total += weights[b, t, s] * (1 - penalty)
    sums = diagonality(weights, targets, lengths, width)
    assert sums.count == 7
    np.testing.assert_allclose(sums.total, total, rtol=1e-5)


def test_diagonality_orders_diagonal_uniform_and_reversed():
    n = np.array([8])
    on = ratio(diagonality(np.eye(8)[None], n, n))
    uniform = ratio(diagonality(np.full((1, 8, 8), 1 / 8), n, n))
    off = ratio(diagonality(np.eye(8)[None, ::-1], n, n))
    assert on == 1 > uniform > off > 0


def test_entropy_is_that_of_scipy():
    weights = random_weights(np.random.default_rng(1), [3, 6], 5, 6)
    sums = entropy(weights, np.array([5, 2]))
    rows = [*weights[0], *weights[1, :2]]
    expected = np.mean([scipy.stats.entropy(row) for row in rows])
    np.testing.assert_allclose(ratio(sums), expected, rtol=1e-5)
    assert ratio(entropy(np.full((1, 2, 4), 0.25), np.array([2]))) == pytest.approx(np.log(4))
    assert ratio(entropy(np.eye(4)[None], np.array([4]))) == 0


def test_scores_are_those_of_each_head_and_empty_rows_count_nothing():
    generator = np.random.default_rng(2)
    heads = [random_weights(generator, [4, 6, 1], 5, 6) for _ in range(3)]
    # The last row is filler: no targets.
    targets = np.array([[5, 6, 2, -1, -1], [7, 8, 9, 5, 2], [-1] * 5])
    alignment = np.array([[1, 0, -1, -1, -1], [3, 2, 1, 0, -1], [-1] * 5])
    batch = {
        "source_length": np.array([4, 6, 1]),
        "targets": targets,
        "alignment": alignment,
    }
    scores = alignment_scores(np.stack(heads, 1), batch)
    assert set(scores) == {"alignment_error", "diagonality", "entropy"}
    lengths = np.array([3, 5])
    for h, head in enumerate(heads):
        expected = {
            "alignment_error": alignment_error(head[:2], alignment[:2]),
            "diagonality": diagonality(head[:2], lengths, batch["source_length"][:2]),
            "entropy": entropy(head[:2], lengths),
        }
        for name, sums in expected.items():
            np.testing.assert_allclose(scores[name].total[h], sums.total, rtol=1e-6)
            np.testing.assert_allclose(scores[name].count[h], sums.count)
    del batch["alignment"]
    assert set(alignment_scores(np.stack(heads, 1), batch)) == {"diagonality", "entropy"}
    # A model without attention has no heads.
    assert alignment_scores(np.zeros((3, 0, 5, 6)), batch)["entropy"].total.shape == (0,)


def test_a_pointer_that_moves_forward_is_monotonic():
    forward = np.eye(5)[None, [0, 0, 2, 4]]
    assert ratio(monotonicity(forward, np.array([4]))) == 1.0
    # Two of the three steps of this one go back, and what lies after the end counts for nothing.
    back = np.eye(5)[None, [3, 2, 4, 1, 0]]
    assert ratio(monotonicity(back, np.array([4]))) == pytest.approx(1 / 3)
    spread = np.array([[[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.4, 0.0, 0.6]]])
    assert ratio(monotonicity(spread, np.array([3]))) == 1.0


def test_spans_by_a_loop():
    generator = np.random.default_rng(0)
    weights = random_weights(generator, [9, 6], 4, 9)
    span = np.array([[[0, 2], [2, 5], [5, 5], [5, 9]], [[1, 3], [3, 6], [0, 0], [0, 0]]])
    found = span_scores(weights, span)
    own, covered = [], []
    for row in range(2):
        for t, (first, after) in enumerate(span[row]):
            if first < after:
                own.append(weights[row, t, first:after].sum())
                covered.append(min(1.0, weights[row, :, first:after].sum()))
    assert ratio(found["on_span"]) == pytest.approx(np.mean(own), rel=1e-5)
    assert ratio(found["coverage"]) == pytest.approx(np.mean(covered), rel=1e-5)
    assert 0 < np.mean(own) < np.mean(covered) < 1


def test_speech_is_measured_in_positions_of_the_weights():
    """Four frames to a position: spans and lengths shrink alike."""
    weights = np.zeros((1, 2, 3, 4), np.float32)
    weights[0, :, [0, 1, 2], [0, 2, 3]] = 1.0
    batch = {
        "source": np.zeros((1, 16, 5)),
        "source_length": np.array([14]),
        "targets": np.array([[3, 4, 2]]),
        "span": np.array([[[0, 5], [6, 13], [14, 14]]]),
    }
    scores = {name: np.asarray(s.total) / s.count for name, s in
              alignment_scores(weights, batch).items()}  # fmt: skip
    for name in ("monotonicity", "on_span", "coverage"):
        np.testing.assert_allclose(scores[name], [1.0, 1.0])
    assert "alignment_error" not in scores
