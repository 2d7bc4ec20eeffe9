"""Shared command line handling: flags, config overrides, --help, and one-line errors."""

import functools
import inspect
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from research.configuration import checked, flatten, kinds_of, load_config, nearest
from research.errors import PATHS, UserError, told
from research.runs.bucket import copy_all, named

ASKING = ("help", "h", "?", "helpshort", "helpfull")


def is_asked(argv: Sequence[str]) -> bool:
    """Returns whether a command line asks for help, in any common spelling."""
    words = list(argv[1:])
    words = words[: words.index("--")] if "--" in words else words
    return any(w.startswith("-") and w.lstrip("-").split("=")[0] in ASKING for w in words)


def flag_lines(main_module: str) -> list[str]:
    """Returns the help lines for a command's flags: --config first, then in order of definition.

    Only flags that modules of this project define are listed, not those of libraries.

    Args:
      main_module: absl's name for the module that was started.
    """
    found: list[flags.Flag] = []
    for module, defined in flags.FLAGS.flags_by_module_dict().items():
        if module == main_module or module.split(".")[0] == "research":
            found += defined
    if "config" in flags.FLAGS:
        config = flags.FLAGS["config"]
        found = [config, *(flag for flag in found if flag is not config)]
    return [line for flag in found for line in _described(flag)]


def _described(flag: flags.Flag) -> Iterator[str]:
    yield f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}"
    shown = str(flag.default_as_str).strip("'")
    default = "" if flag.default in (None, "", False, []) else f" Default: {shown}."
    yield from flags.text_wrap(f"{flag.help}{default}", 100, "      ").splitlines()


def write(lines: Sequence[str]) -> None:
    """Prints the lines; if the reader closes the pipe early (`--help | head`), stops quietly."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        # Flushing the rest of the buffer at exit would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def config_lines(path: str) -> list[str]:
    """Returns the help lines for the keys of a config file: keys that its run reads, then others.

    Each key has a line with its value, and its meaning below. Raises UserError for a bad config.
    """
    # Imported here because it imports jax, which the help of a command does not need.
    from research.training.schema import help_texts, resolve

    config = load_config(path)
    run = resolve(config)
    meaning = help_texts(run)
    lines = [f"keys that {path} reads (--config.KEY=VALUE overrides one):"]
    for key, value in flatten(run).items():
        lines.append(f"  {key} = {value!r}")
        lines += flags.text_wrap(meaning[key], 100, "      ").splitlines()
    others = sorted(flatten(config).keys() - meaning.keys())
    return [*lines, f"Not read, see docs/config.md for what reads them: {', '.join(others)}."]


NO_CONFIG = "--config is missing; for example --config=configs/base.py."


def _read_flags(argv: list[str], main: Callable[..., int | None], files: bool) -> list[str]:
    """Parses flags; a mistake prints one line and exits with code 2 instead of a traceback.

    Args:
      argv: the command line.
      main: the command; --help prints the docstring of its module.
      files: whether positional arguments are allowed.
    """
    if is_asked(argv):
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
    """Prints a command's description and flags, or the keys of the config file if one is given."""
    path = _given(argv).get("config")
    if path and "config" in flags.FLAGS:
        try:
            lines = config_lines(path)
        except UserError as error:
            _stop(_one_line(error))
    else:
        lines = [str(sys.modules[main.__module__].__doc__).strip(), "", "flags:"]
        lines += flag_lines(main_module=argv[0])
    write(lines)
    sys.exit(0)


def _given(argv: list[str]) -> dict[str, str]:
    """Returns {name: value} of the flags on a command line, written `--name=x` or `--name x`."""
    words = [word for argument in argv[1:] for word in argument.split("=", 1)]
    pairs = itertools.pairwise([*words, ""])
    return {word.lstrip("-"): value for word, value in pairs if word.startswith("-")}


def _check_config_flag() -> None:
    """Raises UserError unless --config was given, can be loaded, and its overrides are valid."""
    if "config" not in flags.FLAGS:
        return
    flag = flags.FLAGS["config"]
    path = config_flags.get_config_filename(flag) if flag.present else ""
    if not path:
        # An experiment names its own config; a command that takes either checks for that itself.
        if "experiment" in flags.FLAGS:
            return
        raise UserError(NO_CONFIG)
    # For a key whose value is a tuple such as (1, 2), the flag also accepts (1, "a") and abc.
    config = load_config(path)
    known, kinds = flatten(config), kinds_of(config)
    for key, value in flatten(flags.FLAGS.config).items():
        if value is not None:
            checked(key, value, kinds[key], known[key])


def _explained(argv: list[str], error: Exception) -> str:
    """Returns the error message for a command line that could not be parsed, with the fix."""
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
            kinds = kinds_of(load_config(given["config"]))
            for key, value in overrides.items():
                _check_override(key, value, kinds)
        except UserError as found:
            return _one_line(found)
    return _one_line(error)


def _check_override(key: str, value: str, kinds: Mapping[str, type]) -> None:
    """Raises UserError if an override names an unknown key or has a value of the wrong type."""
    if key not in kinds:
        raise UserError(f"config key {key!r} does not exist.{nearest(key, kinds)}")
    kind = kinds[key]
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
    print(f"error: {named(message)}", file=sys.stderr)
    sys.exit(code)


def define_config_flag() -> None:
    """Defines --config=FILE and --config.key=value overrides."""
    about = (
        "Config file, for example --config=configs/recall.py. --config.KEY=VALUE overrides a key "
        "of it, for example --config.model.num_heads=4. --config=FILE --help lists what it reads."
    )
    config_flags.DEFINE_config_file("config", None, about, lock_config=True)


def define_process_flags() -> None:
    """Defines the flags by which several processes find each other, for `parallel.processes`."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, when there are several.")
    flags.DEFINE_integer("num_processes", 0, "How many processes there are.")
    flags.DEFINE_integer("process_id", -1, "Which one this is, from 0.")
    flags.DEFINE_boolean("distributed", False, "Finds the processes by itself: TPU, Slurm, GKE.")


def run(main: Callable[..., int | None]) -> None:
    """Runs a command: parses flags, calls `main()`, and exits with the code that it returns.

    A UserError, or an OSError caused by a wrong path, prints one line and exits with code 2. Any
    other OSError, such as a full disk, prints one line and exits with code 1.

    If `main` has parameters, it is called with the positional arguments.
    """
    files = bool(inspect.signature(main).parameters)

    def guarded(argv: list[str]) -> None:
        # Libraries log a lot at INFO level, which would bury the command's own output.
        logging.set_verbosity(logging.WARNING)
        try:
            code = main(*argv[1:]) or 0
            copy_all()
            sys.exit(code)
        except UserError as error:
            _stop(_one_line(error))
        except BrokenPipeError:
            # The reader closed the pipe: discard the rest, which would raise again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except OSError as error:
            _stop(f"{_one_line(Exception(told(error)))}.", 2 if error.errno in PATHS else 1)

    app.run(guarded, flags_parser=functools.partial(_read_flags, main=main, files=files))
