"""Config files: loading, deltas, identity, and the flag parsing of the commands.

A config file defines `get_config() -> ConfigDict` (optionally `get_config(argument)`, given as
`--config=file.py:argument`). `research/` never imports `configs/`: it is handed a path.
"""

import contextlib
import copy
import functools
import hashlib
import importlib.util
import inspect
import itertools
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from research import command_help
from research.errors import PATHS, UserError, did_you_mean, told

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
    if path.suffix != ".py":
        raise UserError(f"{str(path)!r} is not a Python file; its name must end in .py.")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses defined in the file look their module up.
    sys.modules.setdefault(path.stem, module)
    with _blaming(path):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _blaming(path: str | Path) -> Generator[None]:
    """Turns an exception of the user's file into a UserError that says where it was raised."""
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
    """Returns {dotted key: value}, nested mappings opened, tuples kept."""
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

    Raises UserError for a key that does not exist (naming the nearest) and for a value of
    another type (naming the type that is wanted).
    """
    result = ConfigDict(config.to_dict())
    known = flatten(config)
    for key, value in deltas.items():
        if key not in known:
            raise UserError(f"config key {key!r} does not exist.{_nearest(key, known)}")
        result.update_from_flattened_dict({key: _checked(key, value, known[key])})
    return result.lock()


def _nearest(key: str, known: Iterable[str]) -> str:
    """Returns the key that was meant: one with the same last part, else one spelled alike."""
    leaf = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    return f" Did you mean {leaf[0]!r}?" if len(leaf) == 1 else did_you_mean(key, known)


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
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config key {key!r} takes a finite number, not {value!r}.")
    if isinstance(old, tuple) and isinstance(value, tuple) and old:
        kind = type(old[0])
        if any(type(item) is not kind for item in value):
            raise UserError(f"config key {key!r} takes a tuple of {kind.__name__}, not {value!r}.")
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


ADDED_LATER: Deltas = {
    "task.bleu_tokenizer": "auto",
    "task.test_fraction": 0.0,
    "task.test_of_seed": False,
}
"""Keys that runs of before do not have, with the values by which those ran.

A key that has this value is no part of a run's identity, so that adding it changes no run id.
"""


def _owner(plain: Mapping, key: str) -> tuple[Any, str]:
    """Returns the mapping that holds a dotted key, or would, and its last part; {} without one."""
    *parents, leaf = key.split(".")
    for parent in parents:
        plain = plain.get(parent, {})
    return plain, leaf


def identity(plain: Mapping) -> dict:
    """Returns the nested config without what changes no result.

    That is the layout over devices, and keys of `ADDED_LATER` that are as before there were any.
    """
    found = copy.deepcopy({key: value for key, value in plain.items() if key != "parallel"})
    for key, default in ADDED_LATER.items():
        section, leaf = _owner(found, key)
        if section.get(leaf) == default:
            del section[leaf]
    return found


def completed(plain: Mapping) -> dict:
    """Returns the nested config of a run, perhaps of before, with the keys of `ADDED_LATER`."""
    found = copy.deepcopy(dict(plain))
    for key, default in ADDED_LATER.items():
        section, leaf = _owner(found, key)
        section.setdefault(leaf, default)
    return found


def run_id(config: ConfigDict) -> str:
    """Returns 12 hexadecimal digits that identify what a resolved config computes."""
    text = json.dumps(identity(to_plain(config)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(there: Mapping, here: Mapping) -> list[str]:
    """Returns one "key (there, here)" text per key whose values differ."""
    a, b = flatten(there), flatten(here)
    return [
        f"{key} ({a.get(key, 'absent')!r} there, {b.get(key, 'absent')!r} here)"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]


NO_CONFIG = "--config is missing; for example --config=configs/base.py."


def _read_flags(argv: list[str], main: Callable[..., int | None], files: bool) -> list[str]:
    """Parses flags; a mistake is one line and exit code 2 instead of a traceback.

    Args:
      argv: the command line.
      main: the command; --help prints the docstring of its module.
      files: whether arguments that are no flags are allowed.
    """
    if command_help.is_asked(argv):
        _print_help(argv, main)
    try:
        rest = flags.FLAGS(argv)
        _check_config_flag()
    except UserError as error:
        _stop(_one_line(error))
    except Exception as error:  # a config file is run to be read, so anything can be raised
        _stop(_explained(argv, error))
    if len(rest) > 1 and not files:
        _stop(f"unexpected argument {rest[1]!r}; options look like --name=value.")
    if "workdir" in flags.FLAGS and flags.FLAGS["workdir"].value == "":
        _stop("--workdir is empty; give a directory, for example --workdir=runs/NAME.")
    return rest


def _print_help(argv: list[str], main: Callable[..., int | None]) -> None:
    """Prints what the command is and its flags, or the keys of the config file that is given."""
    path = _given(argv).get("config")
    if path and "config" in flags.FLAGS:
        try:
            values = flatten(load_config(path))
            meanings = command_help.meanings_in(load_module(path.partition(":")[0]))
        except UserError as error:
            _stop(_one_line(error))
        lines = [f"keys of {path} (--config.KEY=VALUE overrides one):"]
        lines += command_help.key_lines(values, meanings)
    else:
        lines = [str(sys.modules[main.__module__].__doc__).strip(), "", "flags:"]
        lines += command_help.flag_lines(main_module=argv[0])
    command_help.write(lines)
    sys.exit(0)


def _given(argv: list[str]) -> dict[str, str]:
    """Returns {name: value} of a command line's flags, `--config=x` and `--config x` alike."""
    words = [word for argument in argv[1:] for word in argument.split("=", 1)]
    pairs = itertools.pairwise([*words, ""])
    return {word.lstrip("-"): value for word, value in pairs if word.startswith("-")}


def _check_config_flag() -> None:
    """Raises UserError unless --config was given, loads, and its overrides fit the file."""
    if "config" not in flags.FLAGS:
        return
    flag = flags.FLAGS["config"]
    path = config_flags.get_config_filename(flag) if flag.present else ""
    if not path:
        # An experiment has its configs inside; the command says so itself if it takes either.
        if "experiment" in flags.FLAGS:
            return
        raise UserError(NO_CONFIG)
    # The flag turns (1, "a") and abc into tuples where (1, 2) is wanted.
    known = flatten(load_config(path))
    for key, value in flatten(flags.FLAGS.config).items():
        _checked(key, value, known[key])


def _explained(argv: list[str], error: Exception) -> str:
    """Returns the message for a command line that could not be parsed, with what is right."""
    missing = re.search(r"flag --(\w+)=None", str(error))
    if missing:
        name = missing[1]
        return f"--{name} is missing: {flags.FLAGS[name].help}"
    given = _given(argv)
    overrides = {k.removeprefix("config."): v for k, v in given.items() if k.startswith("config.")}
    if "config" in flags.FLAGS and (overrides or "config" in given):
        try:
            if not given.get("config"):
                raise UserError(NO_CONFIG)
            known = flatten(load_config(given["config"]))
            for key, value in overrides.items():
                _check_override(key, value, known)
        except UserError as found:
            return _one_line(found)
    return _one_line(error)


def _check_override(key: str, value: str, known: Mapping[str, Any]) -> None:
    """Raises UserError for an override of a key that does not exist, or of another type."""
    if key not in known:
        raise UserError(f"config key {key!r} does not exist.{_nearest(key, known)}")
    kind = type(known[key])
    if kind in (int, float):
        try:
            kind(value)
        except ValueError:
            raise UserError(f"config key {key!r} takes {kind.__name__}, not {value!r}.") from None
    elif kind is bool and value.lower() not in ("true", "false", "1", "0", "t", "f"):
        raise UserError(f"config key {key!r} takes true or false, not {value!r}.")


def _one_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split())


def _stop(message: str, code: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def define_config_flag() -> None:
    """Defines --config=FILE and --config.key=value overrides."""
    about = (
        "Config file, for example --config=configs/recall.py. --config.KEY=VALUE overrides a key "
        "of it, for example --config.model.num_heads=4. --config=FILE --help lists all keys."
    )
    config_flags.DEFINE_config_file("config", None, about, lock_config=True)


def define_process_flags() -> None:
    """Defines how several processes find each other; `research.parallel.processes` reads it."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, when there are several.")
    flags.DEFINE_integer("num_processes", 0, "How many processes there are.")
    flags.DEFINE_integer("process_id", -1, "Which one this is, from 0.")
    flags.DEFINE_boolean("distributed", False, "Finds the processes by itself: TPU, Slurm, GKE.")


def run(main: Callable[..., int | None]) -> None:
    """Runs a command: parses flags, calls `main()`, ends with what it returns as exit code.

    A UserError is one line and exit code 2, and so is an OSError that says that a path is wrong.
    Any other OSError, as of a full disk, is one line and exit code 1.

    A `main` with parameters gets the arguments that are no flags: names of files.
    """
    files = bool(inspect.signature(main).parameters)

    def guarded(argv: list[str]) -> None:
        # Libraries narrate at INFO; a command's own lines would drown in it.
        logging.set_verbosity(logging.WARNING)
        try:
            sys.exit(main(*argv[1:]) or 0)
        except UserError as error:
            _stop(_one_line(error))
        except BrokenPipeError:
            # Whoever read the output has seen enough; nothing is left that could be flushed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            _stop(f"{_one_line(Exception(told(error)))}.", 2 if error.errno in PATHS else 1)

    app.run(guarded, flags_parser=functools.partial(_read_flags, main=main, files=files))
