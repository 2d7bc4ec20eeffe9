"""Buckets against all choices tried one by one, and permutations against what chance gives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.tasks.buckets import assign, choose_bounds, padded_part, shuffled


def lengths(number, longest, seed=0):
    """Lengths that go together, as those of translations do."""
    generator = np.random.default_rng(seed)
    source = generator.integers(1, longest + 1, number)
    target = np.clip(source + generator.integers(-2, 4, number), 1, longest)
    return source, target


def held(source, target, bounds):
    """Returns the size of the smallest bucket that holds a pair, found by trying all."""
    return min(s + t for s, t in bounds if source <= s and target <= t)


def positions(source, target, bounds):
    return sum(held(s, t, bounds) for s, t in zip(source, target, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("number", [1, 2, 3])
def test_bounds_against_every_choice(number, seed):
    source, target = lengths(40, 8, seed)
    everything = (source.max(), target.max())
    grid = list(itertools.product(range(1, everything[0] + 1), range(1, everything[1] + 1)))
    best = min(
        positions(source, target, [everything, *others])
        for others in itertools.combinations(grid, number - 1)
    )
    found = choose_bounds(source, target, number, least=1)
    assert len(found) == number and everything in found
    # With up to two buckets there is nothing to be misled by.
    assert positions(source, target, found) <= best * (1.0 if number < 3 else 1.03)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 30))
def test_every_pair_is_held_and_every_bucket_has_enough(seed, number, least):
    source, target = lengths(60, 20, seed)
    bounds = choose_bounds(source, target, number, least)
    bucket = assign(source, target, bounds)
    assert 1 <= len(bounds) <= number
    assert np.bincount(bucket, minlength=len(bounds)).min() >= least
    for s, t, b in zip(source, target, bucket, strict=True):
        assert s <= bounds[b][0] and t <= bounds[b][1]
        assert sum(bounds[b]) == held(s, t, bounds)


@pytest.mark.parametrize("seed", [129, 209, 373])
def test_buckets_of_one_size_have_enough_pairs_each(seed):
    """Which of two buckets of one size is taken is a matter of their order."""
    rng = np.random.default_rng(seed)
    number = int(rng.integers(40, 120))
    source = rng.integers(1, 15, number)
    target = np.clip(source + rng.integers(-4, 5, number), 1, 15)
    bounds = choose_bounds(source, target, 9, 8)
    assert np.bincount(assign(source, target, bounds), minlength=len(bounds)).min() >= 8


def test_more_buckets_than_shapes_are_not_made():
    source = np.repeat([3, 5], 10)
    assert choose_bounds(source, source, 9, 2) == [(3, 3), (5, 5)]


def test_more_buckets_pad_less():
    source, target = lengths(2000, 50)
    buckets = [choose_bounds(source, target, n, 16) for n in range(1, 7)]
    found = [padded_part(source, target, bounds, 16) for bounds in buckets]
    assert (np.diff(found) < 0).all()


def test_padding_counted_by_hand():
    source, target = np.array([1, 2, 2, 4, 4, 4, 4]), np.array([2, 2, 1, 3, 4, 4, 1])
    bounds = [(2, 2), (4, 4)]
    assert assign(source, target, bounds).tolist() == [0, 0, 0, 1, 1, 1, 1]
    # Batches of 2: one of the small bucket, whose pairs have 3, 4, 3 tokens, two of the other.
    tokens = 2 * (3 + 4 + 3) / 3 + 7 + 8 + 8 + 5
    assert padded_part(source, target, bounds, 2) == pytest.approx(1 - tokens / (2 * 4 + 4 * 8))


# Permutations.

permuted = jax.jit(shuffled, static_argnums=2)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 17, 1000, 1024])
def test_all_places_together_are_a_permutation(size):
    found = permuted(jax.random.key(size), jnp.arange(size), size)
    assert sorted(np.asarray(found).tolist()) == list(range(size))
    if size >= 100:
        other = permuted(jax.random.key(size + 1), jnp.arange(size), size)
        assert (np.asarray(found) != np.asarray(other)).mean() > 0.9
        assert abs(np.corrcoef(np.arange(size), found)[0, 1]) < 0.4


def test_places_can_be_asked_one_by_one_and_many_keys_at_once():
    keys = jax.random.split(jax.random.key(0), 3)
    whole = jax.jit(jax.vmap(lambda k: shuffled(k, jnp.arange(37), 37)))(keys)
    whole = np.asarray(whole)
    for i in (0, 17, 36):
        assert [int(permuted(key, jnp.int32(i), 37)) for key in keys] == whole[:, i].tolist()


@pytest.mark.parametrize(("size", "factorial"), [(4, 24), (5, 120)])
def test_every_permutation_is_equally_likely(size, factorial):
    keys = jax.random.split(jax.random.key(0), 100 * factorial)
    found = jax.jit(jax.vmap(lambda k: shuffled(k, jnp.arange(size), size)))(keys)
    _, counts = np.unique(np.asarray(found), axis=0, return_counts=True)
    assert len(counts) == factorial
    # Mean factorial - 1, standard deviation sqrt(2 (factorial - 1)); fixed keys, so no flakes.
    chi_squared = ((counts - 100) ** 2 / 100).sum()
    assert chi_squared < factorial - 1 + 4 * np.sqrt(2 * (factorial - 1))
