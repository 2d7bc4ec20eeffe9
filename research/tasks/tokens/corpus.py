"""Opens token shards: prepared ones with a manifest, and those of nanoGPT, llm.c and OLMo.

Files are memory-mapped, so opening a corpus reads nothing but headers. Their digests are computed
once and kept beside them.
"""

import bisect
import contextlib
import functools
import glob
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserError
from research.runs.store import read_json, write_json
from research.tasks.digests import SHOWN, content_digest, without_common_folder
from research.tasks.tokens.shards import DTYPES, MANIFEST, SPLITS

VERIFIED = ".verified.json"
"""File beside shards with the digest and the largest token of each, by size and time of change."""
LLM_C = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
"""First number of a file of llm.c: its dtype (of GPT-2's and of Llama 3's tokens)."""
HEADER = 256
"""int32 numbers in the header of a file of llm.c; the third is the number of tokens."""
ENDINGS = (".bin", ".npy")
BLOCK = 2**22
"""Bytes that are hashed at a time."""


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


@dataclass(frozen=True)
class Corpus:
    """Token shards by split.

    Attributes:
      vocab_size: number of tokens of the vocabulary.
      splits: "train" and "validation".
      files: {name: sha256} of every file that is read.
      tokenizer: JSON of the tokenizer; "" if the corpus has none.
      end_token: the token that ends every document; -1: unknown.
    """

    vocab_size: int
    splits: Mapping[str, Split]
    files: Mapping[str, str]
    tokenizer: str = ""
    end_token: int = -1


def open_corpus(
    path: str,
    validation_path: str = "",
    dtype: str = "auto",
    vocab_size: int = 0,
    end_token: int = -1,
) -> Corpus:
    """Opens a prepared directory, or files of another project.

    Args:
      path: directory, or file or pattern of the training shards.
      validation_path: files of the validation shards; "": those of the manifest, or those with
        "val" in place of "train" in their names.
      dtype: "uint16", "uint32", or "auto": that of manifest or header, otherwise uint16.
      vocab_size: number of tokens of the vocabulary; 0: that of the manifest. One larger than the
        manifest's pads the vocabulary with tokens that never occur.
      end_token: the token that ends every document; -1: that of the manifest, if there is one.

    Raises UserError for what is missing, damaged or not as the manifest says, and for tokens that
    are not in the vocabulary.
    """
    listed = _listed(path)
    if listed is None:
        found = describe_corpus(path, validation_path, dtype, vocab_size, end_token)
        return replace(found, files=_verified(found.splits, found.vocab_size))
    _check_against_manifest(path, listed, validation_path, dtype, vocab_size, end_token)
    return replace(_opened(listed), vocab_size=vocab_size or listed.vocab_size)


def _opened(listed: "_Listed") -> Corpus:
    """Returns a prepared corpus. Raises UserError if it is not as its manifest says."""
    _check_shards(listed)
    file = listed.tokenizer
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if content_digest(text.encode()) != listed.tokenizer_sha256:
        raise UserError(f"{file} is not the tokenizer that {file.parent / MANIFEST} lists.")
    files = _verified(listed.splits, listed.vocab_size, listed.sha256)
    return Corpus(listed.vocab_size, listed.splits, files, text, listed.end_token)


def describe_corpus(
    path: str,
    validation_path: str = "",
    dtype: str = "auto",
    vocab_size: int = 0,
    end_token: int = -1,
) -> Corpus:
    """Returns a corpus as its manifest, or the headers of its shards, describe it.

    Neither tokens nor tokenizer are read, and where there is a manifest, the shards need not be on
    this machine. Arguments as in `open_corpus`. Raises UserError for a missing or damaged
    description.
    """
    if listed := _listed(path):
        _check_against_manifest(path, listed, validation_path, dtype, vocab_size, end_token)
        size = vocab_size or listed.vocab_size
        return Corpus(size, listed.splits, {}, end_token=listed.end_token)
    found = _foreign(path, validation_path)
    splits = {
        name: _split(f"task.path={path!r}", name, paths, dtype) for name, paths in found.items()
    }
    if not vocab_size:
        raise UserError(
            f"task.corpus_vocab_size=0: nothing in {path} says how many tokens there are; give it, "
            "for example 50257 for GPT-2."
        )
    if end_token >= vocab_size:
        raise UserError(
            f"task.end_token={end_token}: the vocabulary has {vocab_size:,} tokens, the first of "
            "which is 0."
        )
    return Corpus(vocab_size, splits, {}, end_token=end_token)


def open_validation(field: str, path: str, dtype: str, vocab_size: int) -> Corpus:
    """Opens the validation shards of a prepared directory, or shards of another project.

    Args:
      field: what names them in the config, for messages.
      path: directory, or file or pattern of shards.
      dtype: as in `open_corpus`; for shards of another project.
      vocab_size: number of tokens of the vocabulary, of shards of another project.

    Raises UserError as `open_corpus` does.
    """
    if Path(path).expanduser().is_dir():
        listed = _listed(path, ("validation",))
        if listed is None:
            raise UserError(f"{field}: {path} has no {MANIFEST}; name its shards: a file, pattern.")
        return _opened(listed)
    split = _split(field, "validation", _files(field, path), dtype)
    return Corpus(vocab_size, {"validation": split}, _verified({"validation": split}, vocab_size))


def _split(field: str, name: str, paths: Sequence[Path], dtype: str) -> Split:
    """Returns the split of shards of another project."""
    split = Split(name, tuple(_shard(path, DTYPES.get(dtype)) for path in paths))
    kinds = sorted({str(shard.dtype) for shard in split.shards})
    if len(kinds) > 1:
        raise UserError(f"{field}: the {name} shards are of {' and '.join(kinds)}.")
    return split


class _Listed(NamedTuple):
    """What a manifest says: vocabulary, end token, splits, {shard: sha256}, and the tokenizer."""

    vocab_size: int
    end_token: int
    splits: dict[str, Split]
    sha256: dict[Path, str]
    tokenizer: Path
    tokenizer_sha256: str


def _listed(path: str, names: Sequence[str] = SPLITS) -> _Listed | None:
    """Returns what the manifest of a prepared directory says of these splits; None without one."""
    folder = Path(path).expanduser()
    manifest = read_json(folder / MANIFEST) if folder.is_dir() else None
    if manifest is None:
        return None
    try:
        dtype, vocab_size = DTYPES[manifest["dtype"]], int(manifest["vocab_size"])
        splits: dict[str, Split] = {}
        expected: dict[Path, str] = {}
        for split in names:
            one = manifest["splits"][split]
            shards = [
                Shard(folder / Path(s["file"]).name, dtype, 0, int(s["tokens"]))
                for s in one["shards"]
            ]
            splits[split] = Split(split, tuple(shards), int(one["bytes"]))
            expected |= {folder / Path(s["file"]).name: str(s["sha256"]) for s in one["shards"]}
        tokenizer, digest = manifest["tokenizer"]["file"], manifest["tokenizer"]["sha256"]
        end = int(manifest["end_token"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / MANIFEST} is damaged: {error!r} is not as it should be."
        ) from None
    return _Listed(vocab_size, end, splits, expected, folder / Path(tokenizer).name, digest)


def _check_against_manifest(
    path: str, listed: _Listed, validation_path: str, dtype: str, vocab_size: int, end_token: int
) -> None:
    given = {
        "validation_path": (validation_path, ""),
        "corpus_dtype": (dtype, "auto"),
        "end_token": (end_token, -1),
    }
    for key, (value, default) in given.items():
        if value != default:
            raise UserError(f"task.{key}={value!r}: the manifest of {path} says it; leave it out.")
    if 0 < vocab_size < listed.vocab_size:
        raise UserError(
            f"task.corpus_vocab_size={vocab_size}: the manifest of {path} says "
            f"{listed.vocab_size:,}; leave it out, or give a larger one to pad the vocabulary."
        )


def _check_shards(listed: _Listed) -> None:
    """Raises UserError for a shard that is missing or has another size than the manifest says."""
    for path in listed.sha256:
        if not path.is_file():
            raise UserError(f"{path} is missing; {path.parent / MANIFEST} lists it.")
    for shard in (s for split in listed.splits.values() for s in split.shards):
        size, wanted = shard.path.stat().st_size, shard.tokens * shard.dtype.itemsize
        if size != wanted:
            raise UserError(
                f"{shard.path} has {size:,} bytes and should have {wanted:,}: it was cut short or "
                "changed."
            )


def _foreign(path: str, validation_path: str) -> dict[str, list[Path]]:
    """Returns the training and validation files that a directory, file or pattern stands for."""
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
        train, held_out = _files(f"task.path={path!r}", path), []
        other = path.replace("train", "val")
        if not validation_path and other != path:
            held_out = [Path(p) for p in sorted(glob.glob(os.path.expanduser(other)))]
    if validation_path:
        held_out = _files(f"task.validation_path={validation_path!r}", validation_path)
    if not held_out:
        raise UserError(
            f"task.validation_path='': {path} has no validation shards (files with 'val' in "
            "their names); name them."
        )
    if both := sorted(set(train) & set(held_out)):
        raise UserError(f"task.validation_path: {both[0]} is a training shard too.")
    return {"train": train, "validation": held_out}


def _files(field: str, pattern: str) -> list[Path]:
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


def _verified(
    splits: Mapping[str, Split], vocab_size: int, expected: Mapping[Path, str] | None = None
) -> dict[str, str]:
    """Returns {name: sha256} of all shards.

    Raises UserError for one that differs from `expected` or has tokens outside the vocabulary.
    """
    shards = [shard for split in splits.values() for shard in split.shards]
    found: dict[Path, dict[str, Any]] = {}
    for folder in sorted({shard.path.parent for shard in shards}):
        known = _known(folder / VERIFIED)
        before = dict(known)
        for shard in (s for s in shards if s.path.parent == folder):
            status = shard.path.stat()
            version = [status.st_size, status.st_mtime_ns, shard.dtype.name, shard.offset]
            kept = known.get(shard.path.name)
            if not (isinstance(kept, dict) and kept.get("version") == version):
                kept = {"version": version, **_digest(shard)}
                known[shard.path.name] = kept
            found[shard.path] = kept
        if known != before:
            with contextlib.suppress(OSError):  # the directory may be read-only
                write_json(folder / VERIFIED, known)
    for path, kept in found.items():
        if expected and kept["sha256"] != expected[path]:
            raise UserError(
                f"{path} has sha256 {kept['sha256'][:SHOWN]}, not the {expected[path][:SHOWN]} of "
                "its manifest: it was changed. Prepare the corpus again."
            )
        if kept["largest"] >= vocab_size:
            raise UserError(
                f"{path} has the token {kept['largest']:,}; the vocabulary has {vocab_size:,} "
                "(task.corpus_vocab_size, or the manifest), or task.corpus_dtype is another."
            )
    names = without_common_folder([os.path.abspath(path) for path in found])
    return {n: kept["sha256"] for n, kept in zip(names, found.values(), strict=True)}


def _known(path: Path) -> dict[str, Any]:
    try:
        known = read_json(path)
    except (UserError, OSError):  # it only saves time
        return {}
    return known if isinstance(known, dict) else {}


def _digest(shard: Shard) -> dict[str, Any]:
    """Returns sha256 and largest token of a shard, read once."""
    digest, largest = hashlib.sha256(), 0
    with open(shard.path, "rb") as file:
        digest.update(file.read(shard.offset))
        while block := file.read(BLOCK):
            digest.update(block)
            largest = max(largest, int(np.frombuffer(block, shard.dtype).max()))
    return {"sha256": digest.hexdigest(), "largest": largest}
