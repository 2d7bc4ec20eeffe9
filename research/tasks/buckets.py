"""Bucketing of sequence pairs into a few static shapes, and the order of batches in an epoch.

Compiled programs have static shapes, so each pair is padded to the shape (S_b, T_b) of a bucket: at
most S_b tokens of the source and T_b of the target.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

ROUNDS = 8

ORDER_SEED = 0x5EED0003
"""Seed of the order of buckets in each epoch, common to all runs."""

Bounds = tuple[int, int]


def choose_bounds(
    source_lengths: np.ndarray, target_lengths: np.ndarray, number: int, least: int
) -> list[Bounds]:
    """Returns at most `number` buckets for pairs of sequences, the smallest first.

    Minimizes padding greedily, where each pair goes to the smallest bucket (by S + T) that holds
    it: starting from one bucket that holds everything, it adds the bucket that saves most, then
    moves each bucket in turn to where it saves most, until no move helps. This is not guaranteed to
    be optimal; compared with random restarts, the padding is within half a percent.

    Args:
      source_lengths: (N,) tokens of each source, N >= `least`.
      target_lengths: (N,) tokens of each target.
      number: maximum number of buckets; fewer are returned if more would not help.
      least: minimum number of pairs in every bucket.
    """
    pairs = np.zeros((max(source_lengths) + 1, max(target_lengths) + 1), np.int64)
    np.add.at(pairs, (np.asarray(source_lengths), np.asarray(target_lengths)), 1)
    bounds = [(pairs.shape[0] - 1, pairs.shape[1] - 1)]
    for _ in range(number - 1):
        bounds += _best_addition(pairs, bounds, least)
    cost, before = _cost(pairs, bounds), None
    while cost != before:
        before = cost
        for i in range(1, len(bounds)):
            others = bounds[:i] + bounds[i + 1 :]
            moved = others[:i] + _best_addition(pairs, others, least) + others[i:]
            if len(moved) == len(bounds) and _cost(pairs, moved) < cost:
                bounds, cost = moved, _cost(pairs, moved)
    bounds = sorted(bounds, key=lambda b: (sum(b), b))
    # Ties between buckets of equal size go to the first, and sorting may have changed the order, so
    # check the counts again.
    while len(bounds) > 1 and min(counts := _counts(pairs, bounds)) < least:
        bounds.pop(min(range(len(bounds) - 1), key=lambda i: counts[i]))
    return bounds


def _counts(pairs: np.ndarray, bounds: Sequence[Bounds]) -> list[int]:
    """Returns the number of pairs in each bucket."""
    now = _smallest(pairs.shape, bounds)
    return [int(pairs[now == index].sum()) for index in range(len(bounds))]


def _sizes(shape: tuple[int, int]) -> np.ndarray:
    """Returns S + T of every bucket (S, T)."""
    return np.add.outer(np.arange(shape[0]), np.arange(shape[1]))


def _smallest(shape: tuple[int, int], bounds: Sequence[Bounds]) -> np.ndarray:
    """Returns the bucket index of each (source length, target length)."""
    lengths = np.indices(shape)
    sizes = [
        np.where((lengths[0] <= s) & (lengths[1] <= t), s + t, np.iinfo(np.int64).max)
        for s, t in bounds
    ]
    return np.argmin(sizes, axis=0)


def _cost(pairs: np.ndarray, bounds: Sequence[Bounds]) -> int:
    """Returns the total number of positions of all pairs, padding included."""
    sizes = np.array([sum(b) for b in bounds])
    return int((pairs * sizes[_smallest(pairs.shape, bounds)]).sum())


def _best_addition(pairs: np.ndarray, bounds: Sequence[Bounds], least: int) -> list[Bounds]:
    """Returns [the bucket whose addition to `bounds` saves most], or [] if none saves anything.

    Neither the new bucket nor any of `bounds` ends up with fewer than `least` pairs.
    """
    sizes, now = _sizes(pairs.shape), _smallest(pairs.shape, bounds)
    saved, taken = np.zeros_like(sizes), np.zeros_like(sizes)
    allowed = np.ones(sizes.shape, bool)
    for index, bound in enumerate(bounds):
        mine = np.where(now == index, pairs, 0)
        # Pairs that would move from this bucket to (S, T): all with lengths up to S and T. The
        # cumulative sums count them for all candidates at once.
        moves = np.where(sizes < sum(bound), mine.cumsum(0).cumsum(1), 0)
        saved += moves * (sum(bound) - sizes)
        taken += moves
        allowed &= (moves == 0) | (mine.sum() - moves >= least)
    saved = np.where(allowed & (taken >= least), saved, 0)
    if not saved.max():
        return []
    source, target = np.unravel_index(saved.argmax(), saved.shape)
    return [(int(source), int(target))]


def assign(
    source_lengths: np.ndarray, target_lengths: np.ndarray, bounds: Sequence[Bounds]
) -> np.ndarray:
    """Returns (N,) the bucket of each pair with the least padding; every pair must fit into one.

    Args:
      source_lengths: (N,) tokens of each source.
      target_lengths: (N,) tokens of each target.
      bounds: the buckets; ties go to the first.
    """
    shape = max(s for s, _ in bounds) + 1, max(t for _, t in bounds) + 1
    return _smallest(shape, bounds)[source_lengths, target_lengths]


def padded_part(
    source_lengths: np.ndarray, target_lengths: np.ndarray, bounds: Sequence[Bounds], size: int
) -> float:
    """Returns the fraction of positions, source and target together, that are padding.

    This is the expectation over an epoch of full batches of `size` pairs; the pairs of a bucket
    beyond full batches are left out at random.
    """
    bucket = assign(source_lengths, target_lengths, bounds)
    lengths = np.asarray(source_lengths) + np.asarray(target_lengths)
    positions = tokens = 0.0
    for index, bound in enumerate(bounds):
        mine = lengths[bucket == index]
        rows = len(mine) // size * size
        positions += rows * sum(bound)
        tokens += rows * mine.mean() if rows else 0.0
    return 1.0 - tokens / positions


def shuffled(key: Key[Array, ""], places: Int[Array, "*b"], size: int) -> Int[Array, "*b"]:
    """Returns the elements at `places` of a random permutation of 0 .. size - 1.

    Computes only these elements: sorting random numbers would take longer than the step of a small
    model. It is a Feistel network on a rectangle of about `size` cells whose round functions are
    random tables; results outside the range are permuted again (cycle walking; Black and Rogaway
    2002, "Ciphers with Arbitrary Finite Domains", methods 2 and 3).

    Args:
      key: determines the permutation.
      places: in [0, size).
      size: at least 1.
    """
    width = int(np.ceil(np.sqrt(size)))
    height = -(-size // width)
    bits = jax.random.bits(key, (ROUNDS, height + width))
    left_tables = (bits[:, :height] % width).astype(jnp.int32)
    right_tables = (bits[:, height:] % height).astype(jnp.int32)

    # A loop rather than unrolled rounds: this is compiled into every bucket's branch of the step.
    def one_round(x: Int[Array, "*b"], tables: tuple) -> tuple[Int[Array, "*b"], None]:
        to_left, to_right = tables
        left, right = x % width, x // width
        left = (left + to_left[right]) % width
        right = (right + to_right[left]) % height
        return right * width + left, None

    def permute(x: Int[Array, "*b"]) -> Int[Array, "*b"]:
        return jax.lax.scan(one_round, x, (left_tables, right_tables))[0]

    def again(state: tuple) -> tuple:
        x, out = state
        x = jnp.where(out, permute(x), x)
        return x, x >= size

    places = jnp.asarray(places)
    every = jnp.ones(places.shape, bool)
    return jax.lax.while_loop(lambda state: state[1].any(), again, (places, every))[0]


class Epochs(NamedTuple):
    """Assigns pairs to the batches of all steps.

    An epoch consists of all full batches of all buckets. The order of buckets is random but the
    same for every seed, so that all members of a population have the same shape at every step; the
    pairs in a batch depend on the seed. A pair occurs at most once in an epoch; the pairs that do
    not fill a batch are left out, different ones in every epoch.

    Attributes:
      sizes: number of pairs in each bucket, at least `batch_size`.
      batch_size: pairs per batch.
    """

    sizes: tuple[int, ...]
    batch_size: int

    @property
    def batches(self) -> tuple[int, ...]:
        """Number of full batches of each bucket in an epoch."""
        return tuple(size // self.batch_size for size in self.sizes)

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Fraction of batches that come from each bucket."""
        return tuple(batches / sum(self.batches) for batches in self.batches)

    def _place(self, step: int | Int[Array, ""]) -> tuple[Array, Array]:
        """Returns the epoch of a step and the number of its batch, in [0, sum(batches))."""
        number = sum(self.batches)
        epoch, place = jnp.divmod(jnp.asarray(step), number)
        key = jax.random.fold_in(jax.random.key(ORDER_SEED), epoch)
        return epoch, shuffled(key, place, number)

    def bucket(self, step: int | Int[Array, ""]) -> Int[Array, ""]:
        """Returns the bucket of a step's batch."""
        ends = jnp.cumsum(jnp.array(self.batches))
        return jnp.searchsorted(ends, self._place(step)[1], side="right").astype(jnp.int32)

    def rows(
        self, key: Key[Array, ""], step: int | Int[Array, ""], bucket: int
    ) -> Int[Array, " B"]:
        """Returns the indices, within its bucket, of the pairs in a step's batch.

        If `bucket` is not the step's bucket, the result is some valid batch of `bucket`: under
        tracing, every branch must be computable.
        """
        epoch, place = self._place(step)
        index = (place - sum(self.batches[:bucket])) % self.batches[bucket]
        key = jax.random.fold_in(jax.random.fold_in(key, epoch), bucket)
        places = index * self.batch_size + jnp.arange(self.batch_size)
        return shuffled(key, places, self.sizes[bucket])
