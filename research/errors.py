"""Errors that a command shows as one line without a traceback: bad input and failing disks."""

import contextlib
import difflib
import errno
import os
import tempfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from research import options


class UserError(Exception):
    """Bad input. Commands print its message on one line and exit with code 2.

    The message names the field, the value and what would be right.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the nearest known name; "" if none is close."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_name(field: str, value: str, known: Iterable[str]) -> None:
    """Raises UserError unless `value` is in `known`; lists the names and suggests the nearest."""
    known = sorted(known)
    if value not in known:
        hint = did_you_mean(value, known)
        raise UserError(f"{field}={value!r} is unknown.{hint} Allowed: {', '.join(known)}.")


def read_part(section: str, part: type[options.P], values: Mapping[str, Any]) -> options.P:
    """Returns the part that a config section describes.

    Args:
      section: prefix of the keys in error messages; "" for top-level keys.
      part: class of the section.
      values: {key: value}; keys that the part does not read are ignored.

    Raises UserError for an invalid value.
    """
    try:
        return options.read(part, values)
    except options.OptionError as error:
        raise explained(section, error) from None


def explained(section: str, error: options.OptionError) -> UserError:
    """Converts an OptionError in a config section into a UserError."""
    key = f"{section}.{error.field}" if section else error.field
    if error.known:
        hint = did_you_mean(str(error.value), error.known)
        allowed = ", ".join(sorted(error.known))
        return UserError(f"{key}={error.value!r} is unknown.{hint} Allowed: {allowed}.")
    return UserError(f"{key}={error.value!r} {error.message}.")


def check_output(flag: str, path: str, ending: str) -> None:
    """Raises UserError if the output file of a flag could not be written; "" means no output."""
    if path and not path.endswith(ending):
        raise UserError(f"--{flag}={path} must end in {ending}.")
    if path and not Path(path).absolute().parent.is_dir():
        raise UserError(f"--{flag}={path}: there is no such directory.")
    if path and Path(path).is_dir():
        raise UserError(f"--{flag}={path} is a directory.")
    if path:
        try:
            # Files are written as a temporary file and renamed. Check the folder before the work.
            with tempfile.TemporaryFile(dir=Path(path).absolute().parent):
                pass
        except OSError as error:
            raise UserError(f"--{flag}={path} cannot be written: {error.strerror}.") from None


PATHS = frozenset(
    (
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ENAMETOOLONG,
        errno.ELOOP,
    )
)
"""Error numbers caused by a wrong path; other numbers mean that a disk or a network failed."""


def told(error: OSError) -> str:
    """Returns the file name and the system's message: "runs/a: No space left on device"."""
    what = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {what}" if error.filename else what


@contextlib.contextmanager
def naming(path: Path) -> Generator[None]:
    """Adds the file name to an OSError, which has none if a write fails rather than an open."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextlib.contextmanager
def while_starting(directory: Path) -> Generator[None]:
    """Turns an OSError into a UserError, since no work can be lost yet at the start."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir: {directory} cannot be written to ({told(error)}). Choose another."
        ) from None
