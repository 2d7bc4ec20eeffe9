"""Token shards on disk: headerless little-endian uint16 or uint32 files, and their manifest.

<output>/manifest.json        written last: the shards are complete when it exists
         tokenizer.json       of the library `tokenizers`
         train-00000.bin      tokens of one document after another, each with the end token
         validation-00000.bin
         .partial/            what a command that was interrupted goes on from
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import UserError, naming

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SPLITS = ("train", "validation")
DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
"""Types of the tokens on disk, by the name that the manifest has."""


@dataclass
class Counts:
    """Counts of one shard; a document belongs to the shard with its end token.

    Attributes:
      tokens: number of tokens.
      documents: number of documents.
      bytes: bytes of these documents in UTF-8, without anything for end tokens.
    """

    tokens: int = 0
    documents: int = 0
    bytes: int = 0


def shard_name(split: str, index: int) -> str:
    """Returns the file name of a shard."""
    return f"{split}-{index:05d}.bin"


@dataclass
class Writer:
    """Appends documents to the shards of one split.

    Attributes:
      folder: where the shards are.
      split: name of the split.
      most: tokens of a shard; a document that reaches over the end goes on in the next.
      dtype: dtype of the tokens.
      shards: what was written so far.
    """

    folder: Path
    split: str
    most: int
    dtype: np.dtype
    shards: list[Counts] = field(default_factory=list)
    _file: Any = None

    def resume(self) -> None:
        """Removes what was written after `shards` were recorded.

        Raises UserError if a shard lacks tokens that the record says it has.
        """
        for index, shard in enumerate(self.shards):
            path = self.folder / shard_name(self.split, index)
            there = path.stat().st_size if path.is_file() else 0
            size = shard.tokens * self.dtype.itemsize
            if there < size:
                raise UserError(
                    f"{path} was cut short: it has {there:,} bytes, and {size:,} were written. "
                    f"Delete {self.folder} and start again."
                )
            os.truncate(path, size)
        for path in self.folder.glob(f"{self.split}-*.bin"):
            if path.name not in {shard_name(self.split, i) for i in range(len(self.shards))}:
                path.unlink()

    def add(self, tokens: np.ndarray, ends: np.ndarray, sizes: np.ndarray) -> None:
        """Appends documents.

        Args:
          tokens: their tokens, one after the other.
          ends: (N,), where each ends in `tokens`, exclusive.
          sizes: (N,), bytes of each.
        """
        tokens, at, done = tokens.astype(self.dtype, copy=False), 0, 0
        while at < len(tokens):
            if not self.shards or self.shards[-1].tokens == self.most:
                self.close()
                self.shards.append(Counts())
            shard = self.shards[-1]
            part = tokens[at : at + self.most - shard.tokens]
            self._write(part)
            at += len(part)
            shard.tokens += len(part)
            ended = int(np.searchsorted(ends, at, side="right"))
            shard.documents += ended - done
            shard.bytes += int(sizes[done:ended].sum())
            done = ended

    def _write(self, part: np.ndarray) -> None:
        path = self.folder / shard_name(self.split, len(self.shards) - 1)
        with naming(path):
            if self._file is None:
                self._file = open(path, "ab")
            self._file.write(part.tobytes())

    def sync(self) -> None:
        """Brings to the disk what was written."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the shard that is open."""
        self.sync()
        if self._file is not None:
            self._file.close()
            self._file = None

    def record(self) -> list[dict]:
        """Returns the counts of the shards as JSON values."""
        return [asdict(shard) for shard in self.shards]
