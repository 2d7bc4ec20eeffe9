"""Run directories in a bucket, gs://BUCKET/PATH: small files are copied, checkpoints written there.

Objects in a bucket cannot be appended to or renamed, while metrics grow by a row at a time and
every file of `runs.store` is written beside its name and renamed. A store that spoke to buckets
would give up both for local runs too, or need a second way to do everything. Instead, a run in a
bucket has a mirror: a temporary directory that is filled from the bucket when the command starts.
All small files are read and written there as those of any other run, and copied to the bucket
before every checkpoint and at the end. Checkpoints are never in the mirror: Orbax writes them to
the bucket itself, and needs no renames there.

Only the bucket counts. A killed run leaves there what it had at its last checkpoint, metrics up to
that step included, and any machine can go on from it.
"""

import atexit
import errno
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.errors import UserError

SCHEME = "gs://"
NOT_READ = ("checkpoints", "tensorboard", "profile", "wandb")
"""Directories of a run that are not copied from a bucket, since no command reads them."""
NOT_WRITTEN = ("wandb",)
"""Directories of a run that are not copied to a bucket: the library sends its own files."""
TOGETHER = 16
"""Files that are copied at a time."""


@dataclass(frozen=True)
class Mirror:
    """The small files of a directory in a bucket.

    Attributes:
      local: temporary directory.
      remote: the directory in the bucket, an `etils.epath.Path`.
      copied: {file: (size, time of change)} of local files as they are in the bucket.
    """

    local: Path
    remote: Any
    copied: dict[Path, tuple[int, int]] = field(default_factory=dict)


MIRRORS: list[Mirror] = []
"""Mirrors of this process."""


def is_remote(path: str) -> bool:
    """Returns whether a path is a URL."""
    return "://" in path


def open_workdir(path: str) -> Path:
    """Returns the directory of a run or sweep; for one in a bucket its mirror, filled from there.

    Raises UserError if the bucket cannot be read, or the path is another URL.
    """
    if not is_remote(path):
        return Path(path)
    if not path.startswith(SCHEME):
        raise UserError(
            f"--workdir={path}: only {SCHEME} buckets can be written to; mount others, and give "
            "the mounted directory."
        )
    for mirror in MIRRORS:
        if str(mirror.remote) == path.rstrip("/"):
            return mirror.local
    try:
        # Orbax asks the bucket for its kind with it.
        from etils import epath
        from google.cloud import storage  # noqa: F401  # ty: ignore[import-not-found]

        remote = epath.Path(path.rstrip("/"))
        files = list(_files_in(remote)) if remote.exists() else []
    except ImportError as error:
        raise UserError(
            f"--workdir={path} needs the packages gcsfs and google-cloud-storage ({error}): pip "
            "install gcsfs google-cloud-storage. Or mount the bucket, and give the mounted "
            "directory."
        ) from None
    except Exception as error:  # every library of a bucket has its own
        raise _unreadable(path, error) from None
    folder = Path(tempfile.mkdtemp(prefix="attest-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    mirror = Mirror(folder / (remote.name or "bucket"), remote)
    mirror.local.mkdir()
    try:
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(lambda file: _fetch(mirror, file), files))
    except Exception as error:
        raise _unreadable(path, error) from None
    MIRRORS.append(mirror)
    return mirror.local


def local_workdir(path: str, command: str) -> Path:
    """Returns the directory of a run or sweep. Raises UserError if it is in a bucket.

    Args:
      path: as given.
      command: the command, which needs a directory that other processes can see, for the message.
    """
    if is_remote(path):
        raise UserError(
            f"--workdir={path}: {command} needs a directory; mount the bucket, and give the "
            "mounted directory."
        )
    return Path(path)


def whereabouts(path: Path) -> Any:
    """Returns where a path below a mirror is in the bucket; other paths as they are."""
    path = Path(path)
    for mirror in MIRRORS:
        if path.is_relative_to(mirror.local):
            return mirror.remote.joinpath(*path.relative_to(mirror.local).parts)
    return path


def named(text: object) -> str:
    """Returns a text with the names of mirrors replaced by those of their buckets."""
    text = str(text)
    for mirror in MIRRORS:
        text = text.replace(str(mirror.local), str(mirror.remote))
    return text


def copy_to_bucket(path: Path) -> None:
    """Copies the files that have changed, if `path` is below a mirror.

    Raises OSError, with the name in the bucket, if it refuses one.
    """
    for mirror in MIRRORS:
        if path.is_relative_to(mirror.local):
            _copy(mirror)


def copy_all() -> None:
    """Copies what has changed in any mirror. Raises OSError as `copy_to_bucket` does."""
    for mirror in MIRRORS:
        _copy(mirror)


def _copy(mirror: Mirror) -> None:
    # Imported here because it imports NumPy, which the help of a command does not need.
    from research.runs.store import CONFIG, RESULT

    changed = [
        (path, now)
        for path in _local_files(mirror.local)
        if mirror.copied.get(path) != (now := _version(path))
    ]
    # A directory is a run once it has the one, and finished once it has the other.
    marks = (CONFIG, RESULT)
    for part in [
        [one for one in changed if one[0].name not in marks],
        *([one for one in changed if one[0].name == name] for name in marks),
    ]:
        with ThreadPoolExecutor(TOGETHER) as pool:
            list(pool.map(lambda one: _send(mirror, *one), part))


def _send(mirror: Mirror, path: Path, version: tuple[int, int]) -> None:
    to = whereabouts(path)
    try:
        to.write_bytes(path.read_bytes())
    except Exception as error:  # every library of a bucket has its own
        what = f"it cannot be copied to the bucket ({' '.join(str(error).split())})"
        raise OSError(errno.EIO, what, str(to)) from None
    mirror.copied[path] = version


def _fetch(mirror: Mirror, file: Any) -> None:
    path = mirror.local.joinpath(*file.relative_to(mirror.remote).parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.read_bytes())
    mirror.copied[path] = _version(path)


def _files_in(folder: Any) -> Iterator[Any]:
    """Yields the small files below a directory in a bucket."""
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif path.name not in NOT_READ:
            yield from _files_in(path)


def _local_files(folder: Path) -> Iterator[Path]:
    """Yields the files of a mirror, without locks and files that are being written."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif path.name not in NOT_WRITTEN:
            yield from _local_files(path)


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(f"--workdir={path} cannot be read: {' '.join(str(error).split())[:300]}.")
