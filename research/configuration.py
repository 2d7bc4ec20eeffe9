"""Config files: loads, flattens, compares and serializes configs, and applies deltas to them.

A config file defines `get_config() -> ConfigDict`, or `get_config(argument)` for
`--config=file.py:argument`. `research/` never imports `configs/`; files are loaded by path.
"""

import contextlib
import copy
import importlib.util
import json
import math
import sys
import traceback
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from research.errors import UserError, did_you_mean

Deltas = Mapping[str, Any]
"""{dotted config key: new value}, for example {"model.num_heads": 8}."""


def load_module(path: str | Path) -> Any:
    """Imports a Python file by its path; it can import modules from the current directory.

    Raises UserError if the file does not exist.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py") if p.stem != "__init__"]
        hint = did_you_mean(path.name, siblings)
        raise UserError(f"there is no file {str(path)!r}.{hint}")
    if path.suffix != ".py":
        raise UserError(f"{str(path)!r} is not a Python file; its name must end in .py.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, because dataclasses defined in the file look up their module.
    sys.modules.setdefault(path.stem, module)
    with _blaming(path):
        # Compiled anew: Python's cache of compiled files knows a change by size and whole second,
        # which an edit of one digit can leave alone.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module


@contextlib.contextmanager
def _blaming(path: str | Path) -> Generator[None]:
    """Turns an exception raised in the user's file into a UserError that says where it was."""
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}.") from None
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if Path(f.filename).resolve() == Path(path).resolve()]
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error


def load_config(path: str) -> ConfigDict:
    """Returns the locked config of `file.py` or `file.py:argument`."""
    file, _, argument = path.partition(":")
    module = load_module(file)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} defines no get_config(), so it is not a config file.")
    with _blaming(file):
        config = module.get_config(argument) if argument else module.get_config()
    if not isinstance(config, ConfigDict):
        raise UserError(f"{file}: get_config() returns {type(config).__name__}, not a ConfigDict.")
    return config.lock()


def flatten(config: ConfigDict | Mapping, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: value} of a nested mapping; tuples stay tuples."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        inner = found
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = value
    return found


def apply_deltas(config: ConfigDict, deltas: Deltas) -> ConfigDict:
    """Returns a locked copy of `config` with `deltas` applied.

    Raises UserError for an unknown key (suggesting the nearest one) and for a value of the wrong
    type (naming the right one).
    """
    result = copy.deepcopy(config)
    known, kinds = flatten(config), kinds_of(config)
    with result.unlocked():
        for key, value in deltas.items():
            if key not in known:
                raise UserError(f"config key {key!r} does not exist.{nearest(key, known)}")
            changed = checked(key, value, kinds[key], known[key])
            result.update_from_flattened_dict({key: changed})
    return result.lock()


def kinds_of(config: ConfigDict, prefix: str = "") -> dict[str, type]:
    """Returns {dotted key: type of its value}, including unset keys."""
    found = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            found |= kinds_of(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = config.get_type(key)
    return found


def nearest(key: str, known: Iterable[str]) -> str:
    """Returns " Did you mean ...?" with a key that has the same last part or a similar spelling."""
    leaf = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    return f" Did you mean {leaf[0]!r}?" if len(leaf) == 1 else did_you_mean(key, known)


def checked(key: str, value: Any, kind: type, old: Any = None) -> Any:
    """Returns a value converted for a key: a list to a tuple, and an int to a float if needed.

    Args:
      key: the config key.
      value: its new value.
      kind: type of its values.
      old: its present value; a tuple determines the type of the items.

    Raises UserError for a value of the wrong type.
    """
    if isinstance(value, list):
        value = tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # Compared exactly because bool is a subclass of int: True in place of a count is a mistake.
    if type(value) is not kind:
        raise UserError(
            f"config key {key!r} takes {kind.__name__}, not {type(value).__name__} ({value!r})."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config key {key!r} takes a finite number, not {value!r}.")
    if isinstance(old, tuple) and isinstance(value, tuple) and old:
        item = type(old[0])
        if any(type(one) is not item for one in value):
            raise UserError(f"config key {key!r} takes a tuple of {item.__name__}, not {value!r}.")
    return value


def to_plain(config: ConfigDict) -> dict:
    """Returns the config as nested dicts of JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def from_plain(plain: Mapping) -> ConfigDict:
    """Inverse of `to_plain`: lists become tuples again."""

    def restore(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: restore(v) for k, v in value.items()}
        return tuple(restore(v) for v in value) if isinstance(value, list) else value

    return ConfigDict(restore(plain)).lock()


def differences(there: Mapping, here: Mapping) -> list[str]:
    """Returns a text "key (there, here)" for each key whose values differ."""
    a, b = flatten(there), flatten(here)
    return [
        f"{key} ({a.get(key, 'absent')!r} there, {b.get(key, 'absent')!r} here)"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]
