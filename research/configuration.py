"""Config files: loading, deltas, identity, and the flag parsing of the commands.

A config file defines `get_config() -> ConfigDict` (optionally `get_config(argument)`, given as
`--config=file.py:argument`). `research/` never imports `configs/`: it is handed a path.
"""

import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from research.errors import UserError, did_you_mean

Deltas = Mapping[str, Any]
"""Dotted config keys and the values they take, for example {"model.num_heads": 8}."""


def load_module(path: str | Path) -> Any:
    """Imports a Python file by its path, with the current directory importable.

    Raises UserError when there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py") if p.stem != "__init__"]
        hint = did_you_mean(path.name, siblings)
        raise UserError(f"there is no file {str(path)!r}.{hint}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)  # ty: ignore[invalid-argument-type]
    # Registered before it runs: dataclasses defined in the file look their module up.
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)  # ty: ignore[unresolved-attribute]
    return module


def load_config(path: str) -> ConfigDict:
    """Returns the locked config of `file.py` or `file.py:argument`."""
    file, _, argument = path.partition(":")
    module = load_module(file)
    if not hasattr(module, "get_config"):
        raise UserError(f"{file} defines no get_config(), so it is not a config file.")
    config = module.get_config(argument) if argument else module.get_config()
    config.lock()
    return config


def flatten(config: ConfigDict | Mapping, prefix: str = "") -> dict[str, Any]:
    """Returns {dotted key: value}, nested mappings opened, tuples kept."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def apply_deltas(config: ConfigDict, deltas: Deltas) -> ConfigDict:
    """Returns a locked copy of `config` with `deltas` applied.

    Raises UserError for a key that does not exist (naming the nearest) and for a value of
    another type (naming the type that is wanted).
    """
    result = ConfigDict(config.to_dict())
    known = flatten(config)
    for key, value in deltas.items():
        if key not in known:
            near = did_you_mean(key, known)
            leaf = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
            near = near or (f" Did you mean {leaf[0]!r}?" if leaf else "")
            raise UserError(f"config key {key!r} does not exist.{near}")
        result.update_from_flattened_dict({key: _checked(key, value, known[key])})
    return result.lock()


def _checked(key: str, value: Any, old: Any) -> Any:
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is an int in Python; a config that says True where a count belongs is a mistake.
    if type(value) is not type(old):
        raise UserError(
            f"config key {key!r} takes {type(old).__name__}, not {type(value).__name__}"
            f" ({value!r})."
        )
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


def run_id(config: ConfigDict) -> str:
    """Returns 12 hexadecimal digits that identify the resolved config."""
    text = json.dumps(to_plain(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(there: Mapping, here: Mapping) -> list[str]:
    """Returns one "key (there, here)" text per key whose values differ."""
    a, b = flatten(there), flatten(here)
    return [
        f"{key} ({a.get(key, 'absent')!r} there, {b.get(key, 'absent')!r} here)"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


def _read_flags(argv: list[str]) -> list[str]:
    """Parses flags; a mistake is one line and exit code 2 instead of a traceback."""
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS["config"].present:
            flags.FLAGS.config  # a missing file surfaces only when the value is touched
    except flags.Error as error:
        _stop(_first_line(error))
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        _stop("config override: " + _first_line(error))
    except OSError as error:
        _stop(f"--config: {_first_line(error)}")
    if len(rest) > 1:
        _stop(f"unexpected argument {rest[1]!r}; options look like --name=value.")
    return rest


def _first_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def define_config_flag() -> None:
    """Defines --config=FILE and --config.key=value overrides."""
    config_flags.DEFINE_config_file("config", None, "Config file: configs/NAME.py", lock_config=True)


def run(main: Callable[[], int | None]) -> None:
    """Runs a command: parses flags, calls `main()`, turns UserError into one line, exit code 2."""

    def guarded(_: list[str]) -> None:
        # Libraries narrate at INFO; a command's own lines would drown in it.
        logging.set_verbosity(logging.WARNING)
        try:
            sys.exit(main() or 0)
        except UserError as error:
            _stop(" ".join(str(error).split()))

    app.run(guarded, flags_parser=_read_flags)
