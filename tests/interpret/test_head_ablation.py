"""Head ablation against losses whose heads have known effects, and statistics against scipy."""

import numpy as np
import pytest
import scipy.stats

from research.interpret.heads.head_ablation import (
    ablation_differences,
    head_importance,
    prune_greedily,
)

L, H, N = 2, 3, 50
EFFECTS = np.random.default_rng(0).normal([[1.0, 0.0, 0.1], [-0.5, 0.02, 0.3]], 0.5, size=(N, L, H))


def additive(mask):
    """Without a head each example loses its effect."""
    return 2 + (EFFECTS * (1 - np.asarray(mask))).sum((1, 2))


def test_differences_are_the_effects():
    found = ablation_differences(additive, L, H)
    assert found.shape == (L, H, N)
    np.testing.assert_allclose(found, EFFECTS.transpose(1, 2, 0), atol=1e-5)


def test_intervals_and_p_values_are_near_those_of_scipy():
    differences = EFFECTS.transpose(1, 2, 0).astype(np.float32)
    found = head_importance(differences, resamples=3000)
    np.testing.assert_allclose(found.mean, EFFECTS.mean(0), atol=1e-5)
    for layer, head in np.ndindex(L, H):
        sample = differences[layer, head]
        interval = scipy.stats.bootstrap(
            (sample,), np.mean, method="percentile", n_resamples=3000, rng=1
        ).confidence_interval
        np.testing.assert_allclose(found.low[layer, head], interval.low, atol=0.02)
        np.testing.assert_allclose(found.high[layer, head], interval.high, atol=0.02)
        p = scipy.stats.ttest_1samp(sample, 0).pvalue
        assert found.p[layer, head] == pytest.approx(p, abs=0.03)
    # Step by step as Holm says: the least times six, the next times five, never falling.
    p = np.sort(found.p, axis=None)
    expected = np.maximum.accumulate(np.minimum(1, p * np.arange(6, 0, -1)))
    np.testing.assert_allclose(np.sort(found.adjusted, axis=None), expected)
    assert (found.adjusted >= found.p).all() and found.adjusted[0, 0] < 0.05


def test_heads_without_any_effect_and_with_the_same_on_all():
    differences = np.stack([np.zeros(20), np.full(20, 0.1)])[None].astype(np.float32)
    found = head_importance(differences, resamples=200)
    np.testing.assert_allclose(found.p, [[1, 1 / 201]])
    np.testing.assert_allclose(found.low, found.high)


def test_pruning_an_additive_loss():
    effects = EFFECTS.mean(0)
    ranked = sorted(np.ndindex(L, H), key=lambda head: effects[head])
    expected = 2 + np.concatenate([[0], np.cumsum([effects[head] for head in ranked])])
    greedy = prune_greedily(additive, L, H)
    assert [tuple(head) for head in greedy.order] == ranked
    np.testing.assert_allclose(greedy.loss, expected, rtol=1e-5)


def spare(mask):
    """The first two heads do the same work; the third does a little; the last breaks the model."""
    mask = np.asarray(mask)[0]
    loss = 10.0 * (mask[0] == mask[1] == 0) + (mask[2] == 0)
    return np.array([np.nan if mask[3] == 0 else loss])


def test_greedy_pruning_sees_that_a_spare_is_gone():
    """One by one the first two cost nothing, together everything."""
    assert not ablation_differences(spare, 1, 4).mean(-1)[0, :2].any()
    greedy = prune_greedily(spare, 1, 4, number=3)
    np.testing.assert_array_equal(greedy.loss, [0, 0, 1, 11])
    assert greedy.order[:, 1].tolist() == [0, 2, 1]
