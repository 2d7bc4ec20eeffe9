"""Pairs of sequences in a few static shapes, and the order in which they come.

Compiled programs have static shapes, so sequences of different lengths are padded to those of a
bucket: at most S_b tokens of the source, T_b of the target. A bucket is (S_b, T_b).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

ROUNDS = 8

ORDER_SEED = 0x5EED0003
"""Of the order of the buckets in each epoch."""

Bounds = tuple[int, int]


def choose_bounds(
    source_lengths: np.ndarray, target_lengths: np.ndarray, number: int, least: int
) -> list[Bounds]:
    """Returns at most `number` buckets for pairs of sequences, the smallest first.

    They are chosen for little padding when each pair goes to the smallest bucket that holds it,
    smallest by S + T: beginning with the one bucket that holds everything, buckets are added where
    they save most, then each in turn is moved to where it saves most, until none can improve. Not
    proven to be the best choice; against random restarts the padding is within half a percent.

    Args:
      source_lengths: (N,) tokens of each source, N >= `least`.
      target_lengths: (N,).
      number: of buckets; fewer are returned when more would not help.
      least: pairs that every bucket must have.
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
    # Among buckets of one size the order decides, and sorting changed it.
    while len(bounds) > 1 and min(counts := _counts(pairs, bounds)) < least:
        bounds.pop(min(range(len(bounds) - 1), key=lambda i: counts[i]))
    return bounds


def _counts(pairs: np.ndarray, bounds: Sequence[Bounds]) -> list[int]:
    """Returns how many pairs go to each bucket."""
    now = _smallest(pairs.shape, bounds)
    return [int(pairs[now == index].sum()) for index in range(len(bounds))]


def _sizes(shape: tuple[int, int]) -> np.ndarray:
    """Returns S + T of every bucket (S, T)."""
    return np.add.outer(np.arange(shape[0]), np.arange(shape[1]))


def _smallest(shape: tuple[int, int], bounds: Sequence[Bounds]) -> np.ndarray:
    """Returns which bucket each (source length, target length) goes to."""
    lengths = np.indices(shape)
    sizes = [
        np.where((lengths[0] <= s) & (lengths[1] <= t), s + t, np.iinfo(np.int64).max)
        for s, t in bounds
    ]
    return np.argmin(sizes, axis=0)


def _cost(pairs: np.ndarray, bounds: Sequence[Bounds]) -> int:
    """Returns positions, padded ones among them, that all pairs take."""
    sizes = np.array([sum(b) for b in bounds])
    return int((pairs * sizes[_smallest(pairs.shape, bounds)]).sum())


def _best_addition(pairs: np.ndarray, bounds: Sequence[Bounds], least: int) -> list[Bounds]:
    """Returns the bucket that saves most beside `bounds`, as a list of one; empty: none does.

    Neither it nor any of `bounds` is left with fewer than `least` pairs.
    """
    sizes, now = _sizes(pairs.shape), _smallest(pairs.shape, bounds)
    saved, taken = np.zeros_like(sizes), np.zeros_like(sizes)
    allowed = np.ones(sizes.shape, bool)
    for index, bound in enumerate(bounds):
        mine = np.where(now == index, pairs, 0)
        # What a bucket (S, T) would take of this one: all pairs with lengths up to S and T.
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
    """Returns (N,) which bucket holds each pair with the least padding; some bucket must hold it.

    Args:
      source_lengths: (N,) tokens.
      target_lengths: (N,).
      bounds: of the buckets; among those of one size the first is taken.
    """
    shape = max(s for s, _ in bounds) + 1, max(t for _, t in bounds) + 1
    return _smallest(shape, bounds)[source_lengths, target_lengths]


def padded_part(
    source_lengths: np.ndarray, target_lengths: np.ndarray, bounds: Sequence[Bounds], size: int
) -> float:
    """Returns the part of all positions, source and target together, that is padding.

    Of the batches of an epoch, `size` pairs each, in which a bucket's pairs are equally likely:
    what a bucket has beyond full batches is left out.
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
    """Returns what a random permutation of 0 .. size - 1 has at `places`.

    Computed for these places alone, where sorting random numbers takes longer than a small model's
    step: a Feistel network over a rectangle of about size places whose round functions are tables
    of random numbers; a result that is no place is permuted again (Black and Rogaway 2002,
    "Ciphers with Arbitrary Finite Domains", methods 2 and 3).

    Args:
      key: chooses the permutation.
      places: in [0, size).
      size: at least 1.
    """
    width = int(np.ceil(np.sqrt(size)))
    height = -(-size // width)
    bits = jax.random.bits(key, (ROUNDS, height + width))
    left_tables = (bits[:, :height] % width).astype(jnp.int32)
    right_tables = (bits[:, height:] % height).astype(jnp.int32)

    # Loops and not many operations: this is compiled into every bucket's branch of the step.
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
    """Which pairs make the batch of a step.

    An epoch is every full batch of every bucket: the order of the buckets is random but the same
    for every seed, so that all members of a population compute one shape at a time; which pairs
    make a batch depends on the seed. An epoch has a pair once at most; what is left over from full
    batches is another part of a bucket every time.

    Attributes:
      sizes: number of pairs of each bucket, at least `batch_size`.
      batch_size: pairs of a batch.
    """

    sizes: tuple[int, ...]
    batch_size: int

    @property
    def batches(self) -> tuple[int, ...]:
        """Full batches of each bucket: together an epoch."""
        return tuple(size // self.batch_size for size in self.sizes)

    @property
    def frequencies(self) -> tuple[float, ...]:
        """The part of all batches that each bucket has."""
        return tuple(batches / sum(self.batches) for batches in self.batches)

    def _place(self, step: int | Int[Array, ""]) -> tuple[Array, Array]:
        """Returns the epoch of a step and which of its batches, in [0, sum(batches)), it has."""
        number = sum(self.batches)
        epoch, place = jnp.divmod(jnp.asarray(step), number)
        key = jax.random.fold_in(jax.random.key(ORDER_SEED), epoch)
        return epoch, shuffled(key, place, number)

    def bucket(self, step: int | Int[Array, ""]) -> Int[Array, ""]:
        """Returns which bucket the batch of a step is from."""
        ends = jnp.cumsum(jnp.array(self.batches))
        return jnp.searchsorted(ends, self._place(step)[1], side="right").astype(jnp.int32)

    def rows(
        self, key: Key[Array, ""], step: int | Int[Array, ""], bucket: int
    ) -> Int[Array, " B"]:
        """Returns which pairs of its bucket the batch of a step has.

        Where `bucket` is not that of the step, it is some batch of that bucket.
        """
        epoch, place = self._place(step)
        index = (place - sum(self.batches[:bucket])) % self.batches[bucket]
        key = jax.random.fold_in(jax.random.fold_in(key, epoch), bucket)
        places = index * self.batch_size + jnp.arange(self.batch_size)
        return shuffled(key, places, self.sizes[bucket])
