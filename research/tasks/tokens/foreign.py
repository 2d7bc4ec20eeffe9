"""Token shards of other projects: those of nanoGPT, llm.c and OLMo.

They have no manifest: which file is of which split is in its name, and the type of its tokens, if
it is anywhere, in its header.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.errors import UserError
from research.tasks.tokens.shards import DTYPES, MANIFEST
from research.tasks.tokens.splits import Shard, Split

LLM_C = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
"""First number of a file of llm.c: its dtype (of GPT-2's and of Llama 3's tokens)."""
HEADER = 256
"""int32 numbers in the header of a file of llm.c; the third is the number of tokens."""
ENDINGS = (".bin", ".npy")


def open_split(field: str, name: str, paths: Sequence[Path], dtype: str) -> Split:
    """Returns the split of shards of another project.

    Args:
      field: what names them in the config, for messages.
      name: name of the split.
      paths: files of the shards, in order.
      dtype: type of tokens without a header: "uint16", "uint32", or "auto", which is uint16.

    Raises UserError for a shard that is cut short, or whose type is another.
    """
    split = Split(name, tuple(_shard(path, DTYPES.get(dtype)) for path in paths))
    kinds = sorted({str(shard.dtype) for shard in split.shards})
    if len(kinds) > 1:
        raise UserError(f"{field}: the {name} shards are of {' and '.join(kinds)}.")
    return split


def find_shards(path: str, validation_path: str) -> dict[str, list[Path]]:
    """Returns the training and validation files that a directory, file or pattern stands for.

    Args:
      path: of the training shards; validation shards have "val" in its place or in their names.
      validation_path: file or pattern of the validation shards; "": those beside the others.

    Raises UserError if there are none for a split, or a file is of both.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        files = [p for p in sorted(folder.iterdir()) if p.suffix in ENDINGS]
        held_out = [p for p in files if "val" in p.name]
        train = [p for p in files if p not in held_out]
        if not train:
            raise UserError(
                f"task.path={path!r} has no token shards: no {MANIFEST} of research.prepare, and "
                "no training file that ends in .bin or .npy."
            )
    else:
        train, held_out = shard_files(f"task.path={path!r}", path), []
        other = path.replace("train", "val")
        if not validation_path and other != path:
            held_out = [Path(p) for p in sorted(glob.glob(os.path.expanduser(other)))]
    if validation_path:
        held_out = shard_files(f"task.validation_path={validation_path!r}", validation_path)
    if not held_out:
        raise UserError(
            f"task.validation_path='': {path} has no validation shards (files with 'val' in "
            "their names); name them."
        )
    if both := sorted(set(train) & set(held_out)):
        raise UserError(f"task.validation_path: {both[0]} is a training shard too.")
    return {"train": train, "validation": held_out}


def shard_files(field: str, pattern: str) -> list[Path]:
    """Returns the files that a path or pattern stands for, sorted. Raises UserError for none.

    Args:
      field: what names them in the config, for the message.
      pattern: path or pattern.
    """
    plain = os.path.expanduser(pattern)
    paths = [plain] if os.path.isfile(plain) else sorted(glob.glob(plain))
    if not paths:
        raise UserError(
            f"{field}: there is no such file or directory; `python -m research.prepare` makes one."
        )
    return [Path(path) for path in paths]


def _shard(path: Path, dtype: np.dtype | None) -> Shard:
    """Returns the shard of a file, by its first bytes; one without a header is of `dtype`."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(4 * HEADER)
        if head.startswith(b"\x93NUMPY"):
            return _numpy_shard(path, dtype)
    numbers = np.frombuffer(head[: len(head) // 4 * 4], "<i4")
    if len(numbers) == HEADER and int(numbers[0]) in LLM_C:
        kind, tokens = LLM_C[int(numbers[0])], int(numbers[2])
        _check_dtype(path, dtype, kind)
        if size != 4 * HEADER + tokens * kind.itemsize:
            raise UserError(
                f"{path} was cut short: its header says {tokens:,} tokens, and it has "
                f"{(size - 4 * HEADER) // kind.itemsize:,}."
            )
        return Shard(path, kind, 4 * HEADER, tokens)
    kind = dtype or DTYPES["uint16"]
    if not size or size % kind.itemsize:
        raise UserError(
            f"{path} has {size:,} bytes, which is no number of {kind.name} tokens: it was cut "
            "short, or task.corpus_dtype is another."
        )
    return Shard(path, kind, 0, size // kind.itemsize)


def _numpy_shard(path: Path, dtype: np.dtype | None) -> Shard:
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read: it was cut short or damaged ({error}).") from None
    if array.ndim != 1 or array.dtype not in DTYPES.values():
        raise UserError(
            f"{path} has an array of {array.dtype} {array.shape}; one axis of uint16 or uint32 is "
            "needed."
        )
    _check_dtype(path, dtype, array.dtype)
    return Shard(path, array.dtype, array.offset, len(array))


def _check_dtype(path: Path, asked: np.dtype | None, found: np.dtype) -> None:
    if asked not in (None, found):
        raise UserError(f"task.corpus_dtype={asked.name!r}: {path} says that it is {found.name}.")
