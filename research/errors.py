"""The one exception that a command shows as a single line instead of a traceback."""

import difflib
from collections.abc import Iterable
from pathlib import Path


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


def check_output(flag: str, path: str, ending: str) -> None:
    """Raises UserError for the path of a flag that no file can be written to; "" is none."""
    if path and not path.endswith(ending):
        raise UserError(f"--{flag}={path} must end in {ending}.")
    if path and not Path(path).absolute().parent.is_dir():
        raise UserError(f"--{flag}={path}: there is no such directory.")
    if path and Path(path).is_dir():
        raise UserError(f"--{flag}={path} is a directory.")
