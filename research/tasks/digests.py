"""sha256 digests of the files that a task reads, recorded to detect changes of the data."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

SHOWN = 12
"""Number of hexadecimal digits of a digest shown in messages."""

_KNOWN: dict[tuple, str] = {}
"""{file version (path, inode, size, mtime): digest}, so that a process hashes a file once."""


def content_digest(content: bytes) -> str:
    """Returns the sha256 of bytes, hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a file, and caches their digest for `file_digest`. Raises OSError."""
    # Take the version before reading: a write in between must not get the digest of the old bytes.
    version = _version(path)
    content = path.read_bytes()
    _KNOWN[version] = content_digest(content)
    return content


def file_digest(path: Path) -> str:
    """Returns the sha256 of a file's bytes, cached while it is unchanged. Raises OSError."""
    version = _version(path)
    if version not in _KNOWN:
        with open(path, "rb") as file:
            _KNOWN[version] = hashlib.file_digest(file, "sha256").hexdigest()
    return _KNOWN[version]


def _version(path: Path) -> tuple:
    status = os.stat(path)
    return os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns


def digests(paths: Sequence[Path]) -> dict[str, str]:
    """Returns {path: sha256}, with paths relative to the common folder, which may be moved."""
    names = without_common_folder([os.path.abspath(path) for path in paths])
    return {name: file_digest(path) for name, path in zip(names, paths, strict=True)}


def listing_digest(files: Mapping[str, str]) -> str:
    """Returns one digest for {name: sha256}: the sha256 of the output of `sha256sum`."""
    return content_digest("".join(f"{files[n]}  {n}\n" for n in sorted(files)).encode())


def without_common_folder(paths: Sequence[str]) -> list[str]:
    """Returns the paths relative to the deepest folder that contains all of them."""
    if not paths:
        return []
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, folder or ".") for path in paths]


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Describes the first file, by name, that differs; "" if none does.

    Args:
      there: recorded {name: sha256}.
      here: current {name: sha256}.
    """
    for name in sorted(there.keys() | here.keys()):
        old, new = there.get(name), here.get(name)
        if old != new:
            before = f"had sha256 {old[:SHOWN]}" if old else "was not there"
            now = f"has {new[:SHOWN]}" if new else "is not read"
            return f"{name} {before} and now {now}"
    return ""
