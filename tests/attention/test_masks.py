"""Masks against brute force, including the block logic that lets work be skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.attention.parts import bigbird, masks, sparse_masks
from research.attention.parts.part_options import Sizes
from research.attention.parts.segments import segments
from research.options import declarations, read

SIDE = 14
Q, K = np.arange(SIDE)[:, None], np.arange(SIDE)[None, :]
SIZES = Sizes(16, 4, 4, 4, 64)
TABLE = {**masks.MASKS, **sparse_masks.SPARSE_MASKS, "bigbird": bigbird.BigbirdMask}

# What each registered mask allows, by other means than its own: options, and f(q, k).
FORMULAS = {
    "full": ({}, lambda q, k: (q >= 0) & (k >= 0)),
    "causal": ({}, lambda q, k: k <= q),
    "window": ({"window": 5}, lambda q, k: (k <= q) & (q - k < 5)),
    "prefix": ({"prefix_length": 6}, lambda q, k: (k <= q) | ((q < 6) & (k < 6))),
    "local": ({"window": 3}, lambda q, k: np.abs(q - k) <= 3),
    "dilated": ({"window": 3, "dilation": 2}, lambda q, k: np.isin(q - k, [0, 2, 4])),
    "strided": ({"stride": 4}, lambda q, k: (k <= q) & (k > q - 4) | np.isin(q - k, [4, 8, 12])),
    "global": ({"global_tokens": 2}, lambda q, k: np.minimum(q, k) < 2),
    "longformer": (
        {"window": 2, "global_tokens": 1},
        lambda q, k: (np.abs(q - k) <= 2) | (q == 0) | (k == 0),
    ),
    # Without random blocks, whose choice is not a formula; those are tested by their properties.
    "bigbird": (
        {"block_length": 3, "global_tokens": 2, "random_blocks": 0, "mechanism_seed": 0},
        lambda q, k: (np.abs(q // 3 - k // 3) <= 1) | (q < 2) | (k < 2),
    ),
}


def leaf(mask, formula):
    return mask, np.broadcast_to(formula(Q, K), (SIDE, SIDE))


def drawn(make, formula, *ranges):
    """Masks of random sizes with the formula of the same sizes."""
    return st.tuples(*(st.integers(*r) for r in ranges)).map(
        lambda sizes: leaf(make(*sizes), lambda q, k: formula(q, k, *sizes))
    )


def evaluated(mask):
    """A mask with the table of its own pairs, for what has no formula."""
    return mask, np.asarray(mask(Q, K))


leaves = st.one_of(
    st.just(leaf(masks.full(), FORMULAS["full"][1])),
    st.just(leaf(masks.causal(), FORMULAS["causal"][1])),
    drawn(masks.window, lambda q, k, n: (k <= q) & (q - k < n), (1, 16)),
    drawn(masks.prefix, lambda q, k, n: (k <= q) | ((q < n) & (k < n)), (0, 16)),
    drawn(sparse_masks.local, lambda q, k, n: np.abs(q - k) <= n, (0, 15)),
    drawn(
        sparse_masks.dilated,
        lambda q, k, n, d: np.isin(q - k, np.arange(n) * d),
        (1, 6),
        (1, 5),
    ),
    drawn(
        sparse_masks.strided,
        lambda q, k, n: np.isin(q - k, [*range(n), *range(0, SIDE, n)]),
        (1, 16),
    ),
    drawn(sparse_masks.global_tokens, lambda q, k, n: np.minimum(q, k) < n, (1, 16)),
    st.tuples(st.integers(1, 4), st.integers(0, 9), st.integers(0, 2), st.integers(0, 2)).map(
        lambda a: evaluated(bigbird.RandomLinks(*a))
    ),
)
# Of blocks instead of positions: the table is that of the inner mask, repeated.
coarse = st.tuples(leaves, st.integers(1, 5)).map(
    lambda a: (
        bigbird.BlockMask(a[0][0], a[1]),
        a[0][1].repeat(a[1], 0).repeat(a[1], 1)[:SIDE, :SIDE],
    )
)
single = leaves | coarse


def combine(pair):
    """A mask built from two, and the same on the table of pairs."""
    (a, x), (b, y), how = pair
    return {"and": (a & b, x & y), "or": (a | b, x | y), "not": (~a, ~x)}[how]


composed = st.recursive(
    single,
    lambda inner: st.tuples(inner, inner, st.sampled_from(["and", "or", "not"])).map(combine),
    max_leaves=5,
)


def grid(mask, table, q_block: int, kv_block: int):
    """What ``blocks`` says of a grid of blocks, and what is true of it."""
    starts = np.arange(0, SIDE, q_block)[:, None], np.arange(0, SIDE, kv_block)[None, :]
    ends = (np.minimum(s + b, SIDE) - 1 for s, b in zip(starts, (q_block, kv_block), strict=True))
    (q_lo, kv_lo), (q_hi, kv_hi) = starts, ends
    some, every = (
        np.broadcast_to(x, (len(q_lo), kv_lo.size))
        for x in mask.classify_blocks(q_lo, q_hi, kv_lo, kv_hi)
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


@settings(deadline=None, max_examples=150)
@given(leaves, st.integers(1, 15), st.integers(1, 15))
def test_blocks_of_single_masks_are_exact(case, q_block, kv_block):
    some, every, true_some, true_every = grid(*case, q_block, kv_block)
    assert np.array_equal(some, true_some)
    assert np.array_equal(every, true_every)


@pytest.mark.parametrize("name", TABLE)
def test_blocks_of_registered_masks_on_every_grid(name):
    mask = built(name)
    table = np.broadcast_to(mask(Q, K), (SIDE, SIDE))
    for q_block in range(1, SIDE + 1):
        for kv_block in range(1, SIDE + 1):
            some, every, true_some, true_every = grid(mask, table, q_block, kv_block)
            # Unions may miss a block that only both together fill, never one that is empty.
            assert np.array_equal(some, true_some)
            assert not (every & ~true_every).any()


@settings(deadline=None, max_examples=300)
@given(composed)
def test_reach_kept_and_together_bound_what_is_seen(case):
    mask, table = case
    assert mask.num_sink_tokens >= 0
    if mask.reach is None:
        assert mask.num_sink_tokens == 0
    else:
        assert mask.reach >= 1
        assert not (table & (K >= mask.num_sink_tokens) & (Q - K >= mask.reach)).any()
    if mask.prefix_length is not None:
        assert (K <= np.maximum(Q, mask.prefix_length - 1))[table].all()


def test_reach_and_together_of_what_is_decoded():
    a, b = masks.window(3), masks.window(5)
    found = [masks.full(), masks.causal(), a, a | b, a & b, a & masks.causal(), ~~a]
    assert [m.reach for m in found] == [None, None, 3, 5, 3, 3, 3]
    assert (a | masks.causal()).reach is None
    assert (~a).reach is None
    assert [m.prefix_length for m in found] == [None, 0, 0, 0, 0, 0, 0]
    assert masks.prefix(4).prefix_length == 4
    assert (masks.prefix(4) & masks.causal()).prefix_length == 0
    assert (masks.prefix(4) | masks.causal()).prefix_length == 4
    assert (masks.causal() | masks.full()).prefix_length is None


def test_what_a_decoder_keeps_of_sparse_masks():
    """Not only sound but as small as the mask allows."""

    def slots(mask):
        return mask.reach, mask.num_sink_tokens, mask.prefix_length

    first, causal = sparse_masks.global_tokens(2), masks.causal()
    assert slots(masks.window(4) | (causal & first)) == (4, 2, 0)
    assert slots((masks.window(4) | first) & causal) == (4, 2, 0)
    assert slots(sparse_masks.longformer(3, 2)) == (4, 2, None)
    assert slots(sparse_masks.longformer(3, 2) & causal) == (4, 2, 0)
    assert slots(sparse_masks.dilated(3, 4)) == (9, 0, 0)
    assert slots(sparse_masks.strided(3)) == (None, 0, 0)
    assert slots(sparse_masks.local(3)) == (4, 0, None)
    # Either claim holds; the one with fewer slots is taken.
    assert slots(masks.window(4) & first) == (1, 2, 0)
    assert slots(masks.window(4) & sparse_masks.global_tokens(9)) == (4, 0, 0)
    assert slots(bigbird.bigbird(3, 0, 2) & causal) == (6, 2, 0)
    assert slots(bigbird.bigbird(3, 1, 2) & causal) == (None, 0, 0)


def built(name):
    return read(TABLE[name], FORMULAS[name][0]).build(SIZES)


def test_every_registered_mask_has_a_formula():
    assert set(FORMULAS) == set(TABLE)
    for name, part in TABLE.items():
        assert set(FORMULAS[name][0]) == set(declarations(part))


@pytest.mark.parametrize("name", TABLE)
def test_registered_masks_are_their_formulas(name):
    mask, formula = built(name), FORMULAS[name][1]
    expected = np.broadcast_to(formula(Q, K), (SIDE, SIDE))
    assert np.array_equal(mask(Q, K), expected)
    assert np.array_equal(jax.jit(mask.__call__)(jnp.asarray(Q), jnp.asarray(K)), expected)
    assert mask == built(name)
    hash(mask)


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_random_links(seed):
    side, count = 40, 3
    q, k = np.arange(side)[:, None], np.arange(side)[None, :]
    links = np.asarray(bigbird.RandomLinks(count, seed, first=2, near=1)(q, k))
    # The same in compiled code, with positions that are not known while tracing.
    traced = jax.jit(bigbird.RandomLinks(count, seed, first=2, near=1).__call__)
    assert np.array_equal(links, traced(jnp.asarray(q), jnp.asarray(k)))
    assert np.array_equal(links, links.T)
    before = np.tril(links)
    candidates = np.maximum(np.arange(side) - 1 - 2, 0)
    assert np.array_equal(before.sum(1), np.minimum(candidates, count))
    assert not before[:, :2].any()
    assert not (before & (q - k <= 1)).any()
    # Each length is the beginning of a longer one.
    assert np.array_equal(bigbird.RandomLinks(count, seed, 2, 1)(q[:9], k[:, :9]), links[:9, :9])
    other = np.asarray(bigbird.RandomLinks(count, seed + 1, first=2, near=1)(q, k))
    assert not np.array_equal(other, links)


def test_random_links_are_uniform():
    """Over seeds, a query draws each of its candidates equally often, and draws independently."""
    seeds, at = 600, 12
    q, k = np.full((1, 1), at), np.arange(at)[None, :]
    drawn = np.array([bigbird.RandomLinks(2, s)(q, k)[0] for s in range(seeds)])
    assert np.array_equal(drawn.sum(1), np.full(seeds, 2))
    # Of 12 candidates 2 are drawn: 100 of 600, standard deviation 9.1.
    assert np.abs(drawn.sum(0) - seeds / 6).max() < 4 * 9.2
    first, second = drawn[:, :6].argmax(1), drawn[:, 6:].argmax(1)
    pairs = np.bincount(first * 6 + second, minlength=36)
    chi_square = ((pairs - seeds / 36) ** 2 / (seeds / 36)).sum()
    assert chi_square < 75  # 35 degrees of freedom: 1 in 10000 is above


def test_bigbird_sees_window_global_and_random_blocks():
    block, length = 4, 64
    q, k = np.arange(length)[:, None], np.arange(length)[None, :]
    mask = bigbird.bigbird(block, 2, num_global=4, seed=5)
    table = np.asarray(mask(q, k))
    assert np.array_equal(table, table.T)
    blocks = table.reshape(16, block, 16, block)
    # All of a block or nothing.
    assert np.array_equal(blocks.any((1, 3)), blocks.all((1, 3)))
    behind = np.tril(blocks.all((1, 3))).sum(1)
    # Itself, the one before, the global one, and two drawn from those between.
    expected = [min(i, 1) + 1 + (i >= 2) + min(2, max(i - 2, 0)) for i in range(16)]
    assert behind.tolist() == expected
    assert mask != bigbird.bigbird(block, 2, num_global=4, seed=6)
    options = {"block_length": 4, "random_blocks": 2, "global_tokens": 4, "mechanism_seed": 5}
    assert read(TABLE["bigbird"], options).build(SIZES) == mask


def test_random_links_that_are_too_many_to_count_are_unknown():
    mask = bigbird.RandomLinks(2, 0)
    starts = np.arange(0, 8192, 512)
    args = starts[:, None], starts[:, None] + 511, starts[None], starts[None] + 511
    some, every = mask.classify_blocks(*args)
    assert some.all() and not every.any()
    # The table of larger blocks is small enough.
    some, every = bigbird.BlockMask(mask, 256).classify_blocks(*args)
    assert 0.1 < some.mean() < 0.9


def test_masks_of_arrays():
    q_segments = np.array([[1, 1, 2], [3, 3, 3]])
    kv_segments = np.array([[1, 2, 2, 1], [3, 0, 3, 0]])
    expected = q_segments[:, :, None] == kv_segments[:, None, :]
    q, k = np.arange(3)[:, None], np.arange(4)[None, :]
    mask = segments(jnp.asarray(q_segments), jnp.asarray(kv_segments))
    assert np.array_equal(mask(q, k)[:, 0], expected)
    assert np.array_equal(mask(q.T, k.T)[:, 0], expected.swapaxes(1, 2))
    padded = masks.padding(jnp.asarray(kv_segments > 0))
    assert np.array_equal(padded(q, k)[:, 0], np.broadcast_to(kv_segments[:, None] > 0, (2, 3, 4)))
    # Their contents may be unknown while tracing, so blocks say nothing.
    for m in (mask, padded, ~mask):
        assert m.classify_blocks(q, q, k, k)[0].all()
        assert not m.classify_blocks(q, q, k, k)[1].any()
    # With a mask that knows, what it knows still counts.
    some, _ = (mask & masks.causal()).classify_blocks(q, q, k, k)
    assert np.array_equal(some, k <= q)


@pytest.mark.parametrize(
    ("make", "sizes", "message"),
    [
        (masks.window, (0,), "window: size = 0; it must be at least 1"),
        (masks.prefix, (-1,), "prefix: length = -1"),
        (sparse_masks.local, (-1,), "local: size = -1"),
        (sparse_masks.dilated, (0, 1), "dilated: size = 0"),
        (sparse_masks.dilated, (1, 0), "dilated: dilation = 0"),
        (sparse_masks.strided, (0,), "strided: stride = 0"),
        (sparse_masks.longformer, (1, 0), "global_tokens: size = 0"),
        (bigbird.bigbird, (0, 1, 1), "bigbird: block = 0"),
        (bigbird.bigbird, (1, 1, 1, 2), "window_blocks = 2; it must be odd"),
    ],
)
def test_bad_sizes_are_refused(make, sizes, message):
    with pytest.raises(ValueError, match=message):
        make(*sizes)
