"""What --help prints: what a command is for, the flags it has, and the keys of a config file."""

import ast
import inspect
import io
import os
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags

ASKING = ("help", "h", "?", "helpshort", "helpfull")


def is_asked(argv: Sequence[str]) -> bool:
    """Returns whether a command line asks for help, in any of the usual spellings."""
    words = list(argv[1:])
    words = words[: words.index("--")] if "--" in words else words
    return any(w.startswith("-") and w.lstrip("-").split("=")[0] in ASKING for w in words)


def flag_lines(main_module: str) -> list[str]:
    """Returns what the flags of a command are: --config first, the others in order of definition.

    Its flags are those that modules of this project define, as opposed to libraries.

    Args:
      main_module: the name that absl has for the module that was started.
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
    """Prints the lines, as far as the reader wants them: `--help | head` ends in peace."""
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        # What is still buffered would raise again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def key_lines(values: Mapping[str, Any], meanings: Mapping[str, str]) -> list[str]:
    """Returns a line for each key of a config: its value, and below what it means if that is known.

    Args:
      values: {dotted key: value}.
      meanings: {dotted key: what it means}.
    """
    lines = []
    for key, value in values.items():
        lines.append(f"  {key} = {value!r}")
        lines += flags.text_wrap(meanings.get(key, ""), 100, "      ").splitlines()
    return lines


def meanings_in(module: ModuleType) -> dict[str, str]:
    """Returns {dotted key: comment} for the keys that a config file or a file it imports sets.

    Of `task.length = 64  # most tokens` and of `config.task.length = 64  # most tokens` it is the
    comment behind it, else the comment lines right above. What an imported file says of a key is
    what it means; a file that sets it again may say why.
    """
    found: dict[str, str] = {}
    for other in map(inspect.getmodule, vars(module).values()):
        if other not in (None, module) and hasattr(other, "get_config"):
            found |= meanings_in(other)
    return _comments(Path(str(module.__file__))) | found


def _comments(path: Path) -> dict[str, str]:
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token for token in tokens if token.type == tokenize.COMMENT]
    behind = {t.start[0]: t.string for t in comments if t.line.strip() != t.string}
    alone = {t.start[0]: t.string for t in comments if t.line.strip() == t.string}
    found = {}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        lines, above = [], node.lineno - 1
        while above in alone:
            lines.insert(0, alone[above])
            above -= 1
        lines = [behind[node.end_lineno]] if node.end_lineno in behind else lines
        if lines:
            key = ast.unparse(node.targets[0]).removeprefix("config.")
            found[key] = " ".join(line.lstrip("# ") for line in lines)
    return found
