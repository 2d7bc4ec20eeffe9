"""Opens a corpus: token shards with a manifest of `research.prepare`, or those of other projects.

Files are memory-mapped, so opening a corpus reads nothing but headers. Their digests are computed
once and kept beside them.
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.errors import UserError
from research.runs.store import read_json, write_json
from research.tasks.digests import SHOWN, content_digest, without_common_folder
from research.tasks.tokens.foreign import find_shards, open_split, shard_files
from research.tasks.tokens.shards import DTYPES, MANIFEST, SPLITS
from research.tasks.tokens.splits import Shard, Split

VERIFIED = ".verified.json"
"""File beside shards with the digest and the largest token of each, by size and time of change."""
BLOCK = 2**22
"""Bytes that are hashed at a time."""


@dataclass(frozen=True)
class Corpus:
    """Token shards by split.

    Attributes:
      vocab_size: number of tokens of the vocabulary.
      splits: "train" and "validation", and "test" where a task holds one out.
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
    found = find_shards(path, validation_path)
    splits = {
        name: open_split(f"task.path={path!r}", name, paths, dtype) for name, paths in found.items()
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
    split = open_split(field, "validation", shard_files(field, path), dtype)
    return Corpus(vocab_size, {"validation": split}, _verified({"validation": split}, vocab_size))


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
