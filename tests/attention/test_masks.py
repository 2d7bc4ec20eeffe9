"""Masks against brute force, including the block logic that lets work be skipped."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.attention import masks, registry
from research.attention.registry import Options
from tests.attention.cases import MASK_CASES

SIDE = 14
Q, K = np.arange(SIDE)[:, None], np.arange(SIDE)[None, :]


def leaf(mask, formula):
    return mask, formula(Q, K)


def combine(pair):
    """A mask built from two, and the same on the table of pairs."""
    (a, x), (b, y), how = pair
    return {"and": (a & b, x & y), "or": (a | b, x | y), "not": (~a, ~x)}[how]


leaves = st.one_of(
    st.just(leaf(masks.full(), lambda q, k: (q >= 0) & (k >= 0))),
    st.just(leaf(masks.causal(), lambda q, k: k <= q)),
    st.integers(1, 16).map(
        lambda n: leaf(masks.window(n), lambda q, k: (k <= q) & (q - k < n)),
    ),
    st.integers(0, 16).map(
        lambda n: leaf(masks.prefix(n), lambda q, k: (k <= q) | ((q < n) & (k < n))),
    ),
)
composed = st.recursive(
    leaves,
    lambda inner: st.tuples(inner, inner, st.sampled_from(["and", "or", "not"])).map(combine),
    max_leaves=5,
)


def grid(mask, table, q_block: int, kv_block: int):
    """What ``blocks`` says of a grid of blocks, and what is true of it."""
    starts = np.arange(0, SIDE, q_block)[:, None], np.arange(0, SIDE, kv_block)[None, :]
    ends = (np.minimum(s + b, SIDE) - 1 for s, b in zip(starts, (q_block, kv_block), strict=True))
    (q_lo, kv_lo), (q_hi, kv_hi) = starts, ends
    some, every = (
        np.broadcast_to(x, (len(q_lo), kv_lo.size)) for x in mask.blocks(q_lo, q_hi, kv_lo, kv_hi)
    )
    true_some, true_every = np.zeros(some.shape, bool), np.zeros(some.shape, bool)
    for i in range(some.shape[0]):
        for j in range(some.shape[1]):
            part = table[q_lo[i, 0] : q_hi[i, 0] + 1, kv_lo[0, j] : kv_hi[0, j] + 1]
            true_some[i, j], true_every[i, j] = part.any(), part.all()
    return some, every, true_some, true_every


@settings(deadline=None, max_examples=150)
@given(composed)
def test_composition_is_the_algebra_of_sets(case):
    mask, table = case
    assert np.array_equal(np.broadcast_to(mask(Q, K), table.shape), table)
    # Masks are also evaluated with keys before queries.
    assert np.array_equal(np.broadcast_to(mask(Q.T, K.T), table.shape), table.T)


@settings(deadline=None, max_examples=150)
@given(composed, st.integers(1, 15), st.integers(1, 15))
def test_blocks_are_conservative(case, q_block, kv_block):
    some, every, true_some, true_every = grid(*case, q_block, kv_block)
    assert not (true_some & ~some).any()
    assert not (every & ~true_every).any()


@settings(deadline=None, max_examples=100)
@given(leaves, st.integers(1, 15), st.integers(1, 15))
def test_blocks_of_single_masks_are_exact(case, q_block, kv_block):
    some, every, true_some, true_every = grid(*case, q_block, kv_block)
    assert np.array_equal(some, true_some)
    assert np.array_equal(every, true_every)


@settings(deadline=None, max_examples=150)
@given(composed)
def test_reach_and_together_bound_what_is_seen(case):
    mask, table = case
    if mask.reach is not None:
        assert (Q - K)[table].max(initial=0) < mask.reach
    if mask.together is not None:
        assert (K <= np.maximum(Q, mask.together - 1))[table].all()


def test_reach_and_together_of_what_is_decoded():
    a, b = masks.window(3), masks.window(5)
    found = [masks.full(), masks.causal(), a, a | b, a & b, a & masks.causal(), ~~a]
    assert [m.reach for m in found] == [None, None, 3, 5, 3, 3, 3]
    assert (a | masks.causal()).reach is None
    assert (~a).reach is None
    assert [m.together for m in found] == [None, 0, 0, 0, 0, 0, 0]
    assert masks.prefix(4).together == 4
    assert (masks.prefix(4) & masks.causal()).together == 0
    assert (masks.prefix(4) | masks.causal()).together == 4
    assert (masks.causal() | masks.full()).together is None


@pytest.mark.parametrize("name", registry.MASKS)
def test_registered_masks_are_their_formulas(name):
    options, formula = MASK_CASES[name]
    mask = Options(width=8, num_heads=2, max_length=SIDE, mask=name, **options).build_mask()
    assert np.array_equal(mask(Q, K), np.broadcast_to(formula(Q, K), (SIDE, SIDE)))
    assert mask == Options(width=8, num_heads=2, max_length=9, mask=name, **options).build_mask()
    hash(mask)


def test_masks_of_arrays():
    q_segments = np.array([[1, 1, 2], [3, 3, 3]])
    kv_segments = np.array([[1, 2, 2, 1], [3, 0, 3, 0]])
    expected = q_segments[:, :, None] == kv_segments[:, None, :]
    q, k = np.arange(3)[:, None], np.arange(4)[None, :]
    mask = masks.segments(jnp.asarray(q_segments), jnp.asarray(kv_segments))
    assert np.array_equal(mask(q, k)[:, 0], expected)
    assert np.array_equal(mask(q.T, k.T)[:, 0], expected.swapaxes(1, 2))
    padded = masks.padding(jnp.asarray(kv_segments > 0))
    assert np.array_equal(padded(q, k)[:, 0], np.broadcast_to(kv_segments[:, None] > 0, (2, 3, 4)))
    # Their contents may be unknown while tracing, so blocks say nothing.
    for m in (mask, padded, ~mask):
        assert m.blocks(q, q, k, k)[0].all()
        assert not m.blocks(q, q, k, k)[1].any()
    # With a mask that knows, what it knows still counts.
    some, _ = (mask & masks.causal()).blocks(q, q, k, k)
    assert np.array_equal(some, k <= q)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="window: size = 0; it must be at least 1"):
        masks.window(0)
    with pytest.raises(ValueError, match="prefix: length = -1"):
        masks.prefix(-1)
