"""Rollout against a sum over paths, flow against the smallest of all cuts."""

import itertools

import numpy as np
import pytest

from research.errors import UserError
from research.interpret.flow import flow, layer_weights, rollout


def random_weights(seed, layers=2, heads=2, positions=3, causal=False):
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(positions, 0.5), (layers, heads, positions))
    if causal:
        weights = np.tril(weights) + 1e-3 * np.eye(positions)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def capacities(weights, residual=0.5):
    return (1 - residual) * weights.mean(1) + residual * np.eye(weights.shape[-1])


def test_rollout_is_the_sum_over_all_paths():
    weights = random_weights(0, layers=3)
    layers = capacities(weights)
    found = np.asarray(rollout(weights[:, None]))[:, 0]
    for depth in (1, 2, 3):
        expected = np.zeros((3, 3))
        for path in itertools.product(range(3), repeat=depth + 1):
            steps = zip(path[:-1], path[1:], strict=True)
            mass = np.prod([layers[layer][s] for layer, s in enumerate(reversed(list(steps)))])
            expected[path[0], path[-1]] += mass
        np.testing.assert_allclose(found[depth - 1], expected, rtol=1e-5)


@pytest.mark.parametrize("heads", ["mean", "max", "min"])
def test_rows_of_rollout_sum_to_one_and_causal_heads_stay_causal(heads):
    weights = random_weights(1, layers=4, positions=5, causal=True)[:, None].repeat(2, 1)
    weights[1, :, :, 2] = 0
    weights[2, :, 1, 3] = np.nan
    found = np.asarray(rollout(weights, heads=heads))
    assert found.shape == (4, 2, 5, 5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    assert (found >= 0).all() and not np.triu(found, 1).any()


def test_layer_weights_of_each_way_over_heads():
    weights = np.array([[[0.8, 0.2], [0.5, 0.5]], [[0.4, 0.6], [0.5, 0.5]]], np.float32)
    rows = {"mean": [0.6, 0.4], "max": [0.8 / 1.4, 0.6 / 1.4], "min": [0.4 / 0.6, 0.2 / 0.6]}
    for heads, row in rows.items():
        found = layer_weights(weights, 0.25, heads)
        expected = 0.75 * np.array([row, [0.5, 0.5]]) + 0.25 * np.eye(2)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_residual_is_the_part_that_stays():
    weights = random_weights(2)[:, None]
    np.testing.assert_allclose(np.asarray(rollout(weights, residual=1.0))[-1, 0], np.eye(3))
    bottom = np.asarray(rollout(weights, residual=0.0))[0, 0]
    np.testing.assert_allclose(bottom, weights[0, 0].mean(0), 1e-6)


def smallest_cut(layers, output, entry):
    """The least capacity from a set of nodes with the output to its complement with the entry."""
    count, positions, _ = layers.shape
    nodes = list(itertools.product(range(count + 1), range(positions)))
    start, end = (count, output), (0, entry)
    free = [node for node in nodes if node not in (start, end)]
    least = np.inf
    for inside in itertools.product([False, True], repeat=len(free)):
        with_start = {start} | {node for node, i in zip(free, inside, strict=True) if i}
        cut = sum(
            layers[layer - 1, t, s]
            for layer, t in with_start
            if layer
            for s in range(positions)
            if (layer - 1, s) not in with_start
        )
        least = min(least, cut)
    return least


@pytest.mark.parametrize("seed", range(2))
def test_flow_is_the_smallest_cut(seed):
    weights = random_weights(seed)
    layers = capacities(weights)
    found = flow(weights)
    expected = [[smallest_cut(layers, t, s) for s in range(3)] for t in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(flow(weights, outputs=[2, 0]), found[[2, 0]])
    some = flow(weights, outputs=[2, 0], inputs=[1])
    np.testing.assert_array_equal(some, found[[2, 0]][:, [1]])


def test_flow_of_one_layer_is_its_weights_and_of_more_at_least_rollout():
    """What rollout sends is one flow among all, so that the most is no less."""
    weights = random_weights(3, layers=3, positions=5, causal=True)
    np.testing.assert_allclose(flow(weights[:1]), layer_weights(weights[0]), atol=1e-6)
    deep, rolled = flow(weights), np.asarray(rollout(weights[:, None]))[-1, 0]
    assert (deep >= rolled - 1e-6).all() and (deep > rolled + 1e-3).any()
    assert deep.max() <= 1 + 1e-6 and not np.triu(deep, 1).any()


def test_what_is_wrong_is_named():
    weights = random_weights(0)[:, None]
    with pytest.raises(UserError, match="residual=1.5"):
        rollout(weights, residual=1.5)
    with pytest.raises(UserError, match="Did you mean 'mean'"):
        rollout(weights, heads="meen")
