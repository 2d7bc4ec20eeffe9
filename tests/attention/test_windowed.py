"""The window around the median of what was read last, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.attention.mixers.sequential.alignments import (
    ContentAlignment,
    Coverage,
    LocationAware,
)
from research.attention.mixers.sequential.monotonic import MonotonicChunkwise
from research.attention.mixers.sequential.windowed import NearMask, Windowed, median
from research.attention.parts.masks import padding
from tests.attention.test_alignments import drawn, steps

B, T, S, H, D, WINDOW = 2, 6, 12, 2, 4, 1
LENGTHS = np.array([S, 7])


def vectors():
    rng = np.random.default_rng(0)
    shapes = (T, B, 1, H, D), (B, S, H, D)
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def weights_of(alignment, q, k):
    params = drawn(alignment.parameters())
    valid = padding(jnp.arange(S) < LENGTHS[:, None])
    run = jax.jit(lambda params, q, k: steps(alignment, params, q, k, valid))
    return np.asarray(run(params, q, k))


def numpy_median(weights):
    """Where a sample of `weights` would be cut in halves, counted out."""
    total, passed = float(np.sum(weights, dtype=np.float64)), 0.0
    for position, weight in enumerate(weights):
        passed += float(weight)
        if passed >= total / 2:
            return position
    raise AssertionError


def test_median_cuts_the_weights_in_halves():
    rng = np.random.default_rng(1)
    weights = rng.dirichlet(np.full(9, 0.3), size=(3, 5)).astype(np.float32)
    expected = [[numpy_median(row) for row in rows] for rows in weights]
    assert np.array_equal(median(jnp.asarray(weights)), expected)
    one = jnp.asarray([[0, 0, 0, 2.0, 0], [0.5, 0, 0, 0, 0.5], [0, 0, 0, 0, 0]])
    assert median(one).tolist() == [3, 0, 0]


def test_weights_are_a_softmax_over_the_window():
    """Each head and row by itself, in loops."""
    q, k = vectors()
    found = weights_of(Windowed(ContentAlignment(), WINDOW, H), q, k)
    queries, keys = np.asarray(q), np.asarray(k)
    for row in range(B):
        for head in range(H):
            before = None
            for t in range(T):
                scores = keys[row, : LENGTHS[row], head] @ queries[t, row, 0, head] / D**0.5
                seen = np.arange(LENGTHS[row])
                if before is not None:
                    seen = seen[np.abs(seen - numpy_median(before)) <= WINDOW]
                expected = np.zeros(S)
                expected[seen] = np.exp(scores[seen]) / np.exp(scores[seen]).sum()
                np.testing.assert_allclose(found[t, row, head], expected, atol=1e-6)
                before = expected
    # The window has moved.
    assert len({numpy_median(w) for w in found.reshape(-1, S)}) > 2


@pytest.mark.parametrize(
    "inner", [LocationAware(H, H, D, 3, filter_length=3, num_filters=2), Coverage(H, H, D, 3)]
)
def test_it_goes_around_alignments_with_a_state(inner):
    q, k = vectors()
    found, free = weights_of(Windowed(inner, WINDOW, H), q, k), weights_of(inner, q, k)
    np.testing.assert_allclose(found[0], free[0], atol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    middle = np.asarray(median(jnp.asarray(found)))
    far = np.abs(np.arange(S) - middle[:-1, ..., None]) > WINDOW
    assert not found[1:][far].any()
    assert (found[1:][~far] > 0).mean() > 0.9
    wide = weights_of(Windowed(inner, S, H), q, k)
    np.testing.assert_allclose(wide, free, atol=1e-6)


def test_a_query_after_one_that_read_nothing_sees_all():
    alignment, (q, k) = Windowed(ContentAlignment(), WINDOW, H), vectors()

    @jax.jit
    def run(q, k):
        state = alignment.init_state(B, S, jnp.float32)
        index, blind = jnp.arange(S), padding(jnp.zeros((B, S), bool))
        at = jnp.arange(1)
        nothing, state = alignment.step({}, q[0], {"k": k}, at, index, blind, state)
        weights, _ = alignment.step({}, q[1], {"k": k}, at + 1, index, None, state)
        return nothing, weights

    nothing, weights = run(q, k)
    assert not np.any(nothing)
    assert (np.asarray(weights) > 0).all()


def test_gradient_reaches_only_the_window():
    alignment, (q, k) = Windowed(ContentAlignment(), WINDOW, H), vectors()

    def last(k):
        return steps(alignment, {}, q, k)[-1, 0, 0, 3]

    # One key is enough for the weight of every other to change.
    before = np.asarray(steps(alignment, {}, q, k))[-2, 0, 0]
    near = np.abs(np.arange(S) - numpy_median(before)) <= WINDOW
    reached = np.abs(jax.jit(jax.grad(last))(k))[0, :, 0].max(-1) > 0
    assert not reached[~near].any()
    assert reached.any() == near[3]


def test_near_is_a_mask_of_pairs():
    near = jnp.arange(B * H * S).reshape(B, H, S) % 3 == 0
    pairs = NearMask(near)(jnp.arange(T)[:, None], jnp.arange(S)[None, ::-1])
    assert pairs.shape == (B, H, T, S)
    assert np.array_equal(pairs[:, :, 2], near[..., ::-1])


@pytest.mark.parametrize(
    ("inner", "window", "says"),
    [
        (ContentAlignment(), 0, "window = 0"),
        (MonotonicChunkwise(H, H, D, 3), 2, "only moves forward"),
    ],
)
def test_what_makes_no_sense_is_refused(inner, window, says):
    with pytest.raises(ValueError, match=says):
        Windowed(inner, window, H)
