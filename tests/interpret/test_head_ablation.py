"""Head ablation against losses whose heads have known effects, and statistics against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from research.interpret.heads.head_ablation import (
    ablation_differences,
    head_importance,
    head_sensitivity,
    normalize_layers,
    prune_greedily,
    prune_in_order,
    pruning_order,
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


def test_sensitivity_is_the_mean_size_of_the_gradient():
    effects = jnp.asarray(EFFECTS, jnp.float32)

    def loss(mask):
        return jnp.tanh((effects * mask**2).sum((1, 2)))

    whole = np.tanh(EFFECTS.sum((1, 2)))
    expected = np.abs((1 - whole[:, None, None] ** 2) * 2 * EFFECTS).mean(0)
    found = jax.jit(lambda: head_sensitivity(loss, L, H, batch_size=4))()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_layers_compare_after_normalization():
    found = normalize_layers(np.array([[3.0, 4.0], [0.0, 0.0], [0.03, -0.04]]))
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [0.6, -0.8]], rtol=1e-6)


def test_pruning_an_additive_loss():
    effects = EFFECTS.mean(0)
    order = pruning_order(effects)
    ranked = sorted(np.ndindex(L, H), key=lambda head: effects[head])
    assert [tuple(head) for head in order] == ranked
    expected = 2 + np.concatenate([[0], np.cumsum([effects[head] for head in ranked])])
    fixed = prune_in_order(additive, order, L, H)
    np.testing.assert_allclose(fixed.loss, expected, rtol=1e-5)
    greedy = prune_greedily(additive, L, H)
    np.testing.assert_array_equal(greedy.order, order)
    np.testing.assert_allclose(greedy.loss, expected, rtol=1e-5)
    coarse = prune_in_order(additive, order, L, H, at_once=4)
    measured = [0, 4, 6]
    np.testing.assert_allclose(coarse.loss[measured], expected[measured], rtol=1e-5)
    assert np.isnan(coarse.loss).sum() == 4


def spare(mask):
    """The first two heads do the same work; the third does a little; the last breaks the model."""
    mask = np.asarray(mask)[0]
    loss = 10.0 * (mask[0] == mask[1] == 0) + (mask[2] == 0)
    return np.array([np.nan if mask[3] == 0 else loss])


def test_greedy_pruning_sees_that_a_spare_is_gone():
    """One by one the first two cost nothing, so that a fixed order takes both."""
    importance = ablation_differences(spare, 1, 4).mean(-1)
    fixed = prune_in_order(spare, pruning_order(importance), 1, 4)
    greedy = prune_greedily(spare, 1, 4, number=3)
    np.testing.assert_array_equal(fixed.loss, [0, 0, 10, 11, np.nan])
    np.testing.assert_array_equal(greedy.loss, [0, 0, 1, 11])
    assert greedy.order[:, 1].tolist() == [0, 2, 1]
