"""Cuts a corpus into pieces, from which the rows of a batch are drawn, each from its own.

Row r of a batch of B comes from piece r * G // B. Split over devices like the rows of a batch, each
device has the pieces of its rows: none holds more than its part, and none sends tokens to another.
The rows do not depend on how many devices there are. Places within a piece fit into int32 where the
whole corpus would not.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from research.tasks.tokens.splits import Split

LONGEST_PIECE = 2**31 - 1


@dataclass(frozen=True)
class Pieces:
    """A split as an array (G, N) of tokens, which is read from disk where it is indexed.

    Piece g has the tokens from g * stride on. It goes on for `reach` tokens behind its stride,
    where the next piece begins, so that a window of `reach` + 1 tokens can start anywhere.

    Attributes:
      split: the tokens.
      number: G.
      reach: tokens that a window reads behind its first one.
    """

    split: Split
    number: int
    reach: int

    @property
    def stride(self) -> int:
        """Number of places in a piece where a window can start."""
        return (self.split.tokens - self.reach) // self.number

    @property
    def shape(self) -> tuple[int, int]:
        """(G, N)."""
        return self.number, self.stride + self.reach

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the tokens."""
        return self.split.dtype

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        """Returns some pieces, read now; the second slice is whole."""
        rows = range(*index[0].indices(self.number))
        return np.stack([self.split.read(g * self.stride, self.shape[1]) for g in rows])


def cut(split: Split, batch_size: int, reach: int) -> Pieces | None:
    """Returns a split in as many pieces as divide a batch and the tokens allow; None if too short.

    That is one for each row, unless there are fewer windows than rows.
    """
    windows = split.tokens - reach
    number = max(
        (g for g in range(1, batch_size + 1) if not batch_size % g and g <= windows), default=0
    )
    return Pieces(split, number, reach) if number else None


@dataclass(frozen=True)
class Chunk:
    """The windows of some steps, (P, K, B, T + 1), read from disk where they are indexed.

    Attributes:
      pieces: what the windows are of.
      starts: (P, k, B) places in the pieces, for the first k of K steps; the others are zero.
      steps: K.
    """

    pieces: Pieces
    starts: np.ndarray
    steps: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(P, K, B, T + 1)."""
        members, _, rows = self.starts.shape
        return members, self.steps, rows, self.pieces.reach + 1

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the tokens."""
        return self.pieces.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Returns the windows of some members and rows; the other slices are whole."""
        members, _, rows, _ = index
        starts = self.starts[members, :, rows].astype(np.int64)
        # Piece of each row, for the rows that are asked for.
        total = self.shape[2]
        piece = np.arange(total)[rows] * self.pieces.number // total
        starts += piece * self.pieces.stride
        found: Any = np.zeros((len(starts), self.steps, len(piece), self.shape[3]), self.dtype)
        for place in np.ndindex(starts.shape):
            found[place] = self.pieces.split.read(int(starts[place]), self.shape[3])
        return found
