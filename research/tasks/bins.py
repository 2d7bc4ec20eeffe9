"""Ranges of lengths and positions, by which metrics are sliced."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

MIN_SLICE_SIZE = 20
"""Minimum number of sentences of each split in every range of `word_bins`."""


def power_of_two_bins(first: int, last: int) -> list[tuple[int, int]]:
    """Returns inclusive ranges that double in width from `first` and end at `last`.

    power_of_two_bins(1, 10) = [(1, 1), (2, 3), (4, 7), (8, 10)]; `first` is a power of two.
    """
    bins, low = [], first
    while low <= last:
        bins.append((low, min(2 * low - 1, last)))
        low *= 2
    return bins


def word_bins(words: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Returns inclusive ranges of 5 words, widened to hold `MIN_SLICE_SIZE` sentences each.

    Args:
      words: for each split, the number of words of each sentence; every range has enough sentences
        in all splits.
    """
    longest = max(1, *(int(split.max(initial=0)) for split in words))
    bins, low = [], 0
    for high in range(5, longest + 5, 5):
        if min(((low <= w) & (w <= high)).sum() for w in words) >= MIN_SLICE_SIZE:
            bins.append((max(low, 1), high))
            low = high + 1
    # The remaining sentences are too few for a separate range, so extend the last one.
    return [*bins[:-1], (bins[-1][0] if bins else 1, longest)]


def bin_label(low: int, high: int) -> str:
    """Returns a label such as "8-15", or "8" for a bin of one value."""
    return str(low) if low == high else f"{low}-{high}"


def bin_index(values: Int[Array, "*b"], bins: Sequence[tuple[int, int]]) -> Int[Array, "*b"]:
    """Returns the index of the bin of each value; `bins` are ascending and adjacent."""
    return jnp.searchsorted(jnp.array([high for _, high in bins]), values)
