"""The tokens of a split: memory-mapped files, read as if they were one array."""

import bisect
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Shard:
    """A file of tokens: `tokens` of them behind `offset` bytes."""

    path: Path
    dtype: np.dtype
    offset: int
    tokens: int


@dataclass(frozen=True)
class Split:
    """The tokens of one split, the shards one after the other.

    Attributes:
      name: name of the split.
      shards: its files, of one dtype.
      bytes: bytes of its documents in UTF-8; 0: unknown.
    """

    name: str
    shards: Sequence[Shard]
    bytes: int = 0
    _maps: dict[int, np.ndarray] = field(default_factory=dict, hash=False, compare=False)

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the tokens."""
        return self.shards[0].dtype

    def read(self, start: int, number: int) -> np.ndarray:
        """Returns `number` tokens from `start` on, fewer at the end; mostly a view of the file."""
        first = bisect.bisect_right(self._ends, start)
        begin = start - (self._ends[first - 1] if first else 0)
        parts = [self._map(first)[begin : begin + number]]
        missing = number - len(parts[0])
        while missing > 0 and first + 1 < len(self.shards):
            first += 1
            parts.append(self._map(first)[:missing])
            missing -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def divided(self, name: str, last: int) -> tuple["Split", "Split"]:
        """Returns the split without its last tokens, and these as a split of another name."""
        shards: tuple[list[Shard], list[Shard]] = ([], [])
        left = self.tokens - last
        for shard in self.shards:
            first = min(left, shard.tokens)
            left -= first
            offset = shard.offset + first * shard.dtype.itemsize
            parts = (
                replace(shard, tokens=first),
                replace(shard, offset=offset, tokens=shard.tokens - first),
            )
            for kept, part in zip(shards, parts, strict=True):
                if part.tokens:
                    kept.append(part)
        # How many bytes are in which part is not known.
        behind = round(self.bytes * last / self.tokens)
        return (
            Split(self.name, tuple(shards[0]), self.bytes - behind),
            Split(name, tuple(shards[1]), behind),
        )

    def __len__(self) -> int:
        return self.tokens

    def __getitem__(self, part: slice) -> np.ndarray:
        """Returns the tokens of a slice with both ends."""
        return self.read(part.start, part.stop - part.start)

    @functools.cached_property
    def _ends(self) -> list[int]:
        """Where each shard ends, exclusive."""
        return list(itertools.accumulate(shard.tokens for shard in self.shards))

    def _map(self, index: int) -> np.ndarray:
        if index not in self._maps:
            shard = self.shards[index]
            self._maps[index] = np.memmap(
                shard.path, shard.dtype, "r", shard.offset, (shard.tokens,)
            )
        return self._maps[index]
