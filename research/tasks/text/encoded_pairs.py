"""Converts sentence pairs to tokens, and to padded arrays for each bucket."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from research.tasks.buckets import Bounds, assign
from research.tasks.task import EOS, PAD
from research.tasks.text.parallel_text import Pairs
from research.tasks.text.tokenizer import Tokenizer
from research.tasks.text.translation_scores import count_words


class Encoded(NamedTuple):
    """N pairs as tokens with their end tokens, and the number of words of each source (N,)."""

    source: list[np.ndarray]
    target: list[np.ndarray]
    words: np.ndarray

    @property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of tokens of sources and of targets, (N,) each."""
        source, target = (np.array([len(s) for s in side], int) for side in self[:2])
        return source, target


def encode(tokenizer: Tokenizer, pairs: Pairs, source_language: str) -> Encoded:
    """Tokenizes sentence pairs and counts the words of each source with `count_words`."""
    sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    source, target = (
        [np.append(tokens, EOS) for tokens in tokenizer.encode_all(side)]
        for side in (sources, targets)
    )
    return Encoded(
        source, target, np.array([count_words(s, source_language) for s in sources], np.int32)
    )


def truncate(encoded: Encoded, length: int) -> tuple[Encoded, dict[str, int]]:
    """Cuts both sides to at most `length` tokens, and returns how many of each side were cut.

    A cut source keeps its end token; a cut target does not, because it does not end there.
    """
    source, target = encoded.lengths
    cut_pairs = Encoded(
        [s if len(s) <= length else np.append(s[: length - 1], EOS) for s in encoded.source],
        [t[:length] for t in encoded.target],
        encoded.words,
    )
    return cut_pairs, {
        "source": int((source > length).sum()),
        "target": int((target > length).sum()),
    }


def padded_rows(sequences: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Returns the sequences as an int32 array (N, length), right-padded with `PAD`."""
    rows = np.full((len(sequences), length), PAD, np.int32)
    lengths = np.array([len(s) for s in sequences], int)
    if len(sequences):
        rows[np.arange(length) < lengths[:, None]] = np.concatenate(sequences)
    return rows


def take_pairs(encoded: Encoded, rows: np.ndarray) -> Encoded:
    """Returns the pairs with the given indices."""
    return Encoded(
        [encoded.source[i] for i in rows], [encoded.target[i] for i in rows], encoded.words[rows]
    )


def padded_arrays(encoded: Encoded, bounds: Bounds) -> dict[str, np.ndarray]:
    """Returns int32 "source" (N, S), "source_length", "source_words" (N,), "target" (N, T)."""
    return {
        "source": padded_rows(encoded.source, bounds[0]),
        "source_length": encoded.lengths[0].astype(np.int32),
        "source_words": encoded.words,
        "target": padded_rows(encoded.target, bounds[1]),
    }


def in_buckets(
    encoded: Encoded, bounds: Sequence[Bounds], multiple: int = 1
) -> list[dict[str, np.ndarray]]:
    """Returns `padded_arrays` each bucket, with filler rows up to a multiple of `multiple`.

    Filler rows have an empty target, and only the end token as their source.
    """
    bucket = assign(*encoded.lengths, bounds)
    found = []
    for i, bound in enumerate(bounds):
        some = take_pairs(encoded, np.flatnonzero(bucket == i))
        filler = -len(some.words) % multiple
        some = Encoded(
            some.source + [np.array([EOS], np.int32)] * filler,
            some.target + [np.zeros(0, np.int32)] * filler,
            np.append(some.words, np.zeros(filler, np.int32)),
        )
        found.append(padded_arrays(some, bound))
    return found
