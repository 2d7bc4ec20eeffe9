import math
import random

import jax
import jax.numpy as jnp
import jiwer
import numpy as np
import pytest

from research.tasks.speech.recognition_scores import RATES, edit_distance, error_rates


def padded(rows, length):
    return jnp.array([list(row) + [0] * (length - len(row)) for row in rows], jnp.int32)


def test_edit_distances_are_those_of_jiwer():
    generator = random.Random(0)
    pairs = [
        [[generator.randint(3, 6) for _ in range(generator.randint(least, 7))] for least in (0, 1)]
        for _ in range(200)
    ]
    hypotheses, references = zip(*pairs, strict=True)
    found = jax.jit(edit_distance)(
        padded(hypotheses, 9),
        jnp.array([len(h) for h in hypotheses]),
        padded(references, 8),
        jnp.array([len(r) for r in references]),
    )
    for (hypothesis, reference), distance in zip(pairs, found, strict=True):
        words = jiwer.process_words(" ".join(map(str, reference)), " ".join(map(str, hypothesis)))
        assert distance == words.substitutions + words.insertions + words.deletions


def test_what_lies_after_the_ends_is_not_read():
    hypotheses, references = jnp.array([[3, 4, 9, 9]]), jnp.array([[3, 9, 9]])
    assert edit_distance(hypotheses, jnp.array([2]), references, jnp.array([1])).tolist() == [1]


def test_error_rates_by_hand():
    rates = error_rates(["one two", "three"], ["one", "tree four"])
    assert rates["wer"] == pytest.approx(3 / 3)
    assert rates["deletions"] == pytest.approx(1 / 3)
    assert rates["substitutions"] == pytest.approx(1 / 3)
    assert rates["insertions"] == pytest.approx(1 / 3)
    assert rates["sentence_error_rate"] == 1.0
    # " two" is gone, the "h" is gone, " four" is new.
    assert rates["cer"] == pytest.approx((4 + 1 + 5) / 12)
    assert set(rates) == set(RATES)


def test_nothing_to_score_has_no_rate():
    assert all(math.isnan(rate) for rate in error_rates([], []).values())


def test_an_empty_hypothesis_is_all_deletions():
    rates = error_rates(["one two"], [""])
    assert (rates["wer"], rates["deletions"], rates["cer"]) == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(rates["insertions"] + rates["substitutions"], 0.0)
