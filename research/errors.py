"""What a command shows as a single line instead of a traceback: mistakes, and disks that refuse."""

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
    """Returns " Did you mean 'x'?" for the nearest known name, or "" when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_name(field: str, value: str, known: Iterable[str]) -> None:
    """Raises UserError unless `value` is one of `known`; lists them and suggests the nearest."""
    known = sorted(known)
    if value not in known:
        hint = did_you_mean(value, known)
        raise UserError(f"{field}={value!r} is unknown.{hint} Allowed: {', '.join(known)}.")


def read_part(section: str, part: type[options.P], values: Mapping[str, Any]) -> options.P:
    """Returns a section of a config as the part that its values describe.

    Args:
      section: the name that messages put before a key; "": the key stands alone.
      part: class of the section.
      values: {key: value}; keys that the part does not read are ignored.

    Raises UserError for a value that is wrong.
    """
    try:
        return options.read(part, values)
    except options.OptionError as error:
        raise explained(section, error) from None


def explained(section: str, error: options.OptionError) -> UserError:
    """Returns an error in an option of a section as one that a command shows."""
    key = f"{section}.{error.field}" if section else error.field
    if error.known:
        hint = did_you_mean(str(error.value), error.known)
        allowed = ", ".join(sorted(error.known))
        return UserError(f"{key}={error.value!r} is unknown.{hint} Allowed: {allowed}.")
    return UserError(f"{key}={error.value!r} {error.message}.")


def check_output(flag: str, path: str, ending: str) -> None:
    """Raises UserError for the path of a flag that no file can be written to; "" is none."""
    if path and not path.endswith(ending):
        raise UserError(f"--{flag}={path} must end in {ending}.")
    if path and not Path(path).absolute().parent.is_dir():
        raise UserError(f"--{flag}={path}: there is no such directory.")
    if path and Path(path).is_dir():
        raise UserError(f"--{flag}={path} is a directory.")
    if path:
        try:
            # Output is written beside its place and renamed; asked before hours of work, not after.
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
"""Error numbers that say that a path is wrong; the others say that a disk or a network is."""


def told(error: OSError) -> str:
    """Returns what the system said of a file, with its name: "runs/a: No space left on device"."""
    what = error.strerror or str(error)
    return f"{os.fsdecode(error.filename)}: {what}" if error.filename else what


@contextlib.contextmanager
def naming(path: Path) -> Generator[None]:
    """Gives an OSError the name of the file, which it lacks when a write fails and not an open."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


@contextlib.contextmanager
def while_starting(directory: Path) -> Generator[None]:
    """Turns an OSError into a UserError: nothing is done yet that a disk has to take."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir: {directory} cannot be written to ({told(error)}). Choose another."
        ) from None
