"""The sha256 of the files that a task reads: what a run keeps of its data, to know them again."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

SHOWN = 12
"""Hexadecimal digits of a digest in a message."""

_KNOWN: dict[tuple, str] = {}
"""{a file as it was: its digest}, so that a process hashes a file once."""


def content_digest(content: bytes) -> str:
    """Returns the sha256 of bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a file, and keeps their digest for `file_digest`. Raises OSError."""
    # Before it is read: what is written meanwhile must not pass for what was read.
    version = _version(path)
    content = path.read_bytes()
    _KNOWN[version] = content_digest(content)
    return content


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file's bytes; a file that has not changed is read once. OSError."""
    version = _version(path)
    if version not in _KNOWN:
        with open(path, "rb") as file:
            _KNOWN[version] = hashlib.file_digest(file, "sha256").hexdigest()
    return _KNOWN[version]


def _version(path: Path) -> tuple:
    status = os.stat(path)
    return os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns


def digests(paths: Sequence[Path]) -> dict[str, str]:
    """Returns {path: sha256}, paths from the folder that all files share: it may be moved."""
    names = without_common_folder([os.path.abspath(path) for path in paths])
    return {name: file_digest(path) for name, path in zip(names, paths, strict=True)}


def listing_digest(files: Mapping[str, str]) -> str:
    """Returns one sha256 of many files, {name: sha256}: that of what `sha256sum` prints of them."""
    return content_digest("".join(f"{files[n]}  {n}\n" for n in sorted(files)).encode())


def without_common_folder(paths: Sequence[str]) -> list[str]:
    """Returns paths from the deepest folder that all of them are in."""
    if not paths:
        return []
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, folder or ".") for path in paths]


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Returns what the first file is that differs, "" if none does.

    Args:
      there: {name: sha256} as it was.
      here: as it is.
    """
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name), here.get(name)
        if old != new:
            before = f"had sha256 {old[:SHOWN]}" if old else "was not there"
            now = f"has {new[:SHOWN]}" if new else "is not read"
            return f"{name} {before} and now {now}"
    return ""
