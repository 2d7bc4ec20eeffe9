"""Runs commands for the price of one interpreter start: each is a fork of one process.

That process has imported what commands import, but no command: two of them define the same flags.
It is started once by every process of the tests, reads requests, a line of JSON each, and answers
with the outcomes. No fork finds a device touched: every case meets the command as a fresh process
would, with its own flags, its own files and no network.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 900
"""After which a case is ended."""

IMPORTED = (
    "research.report.write",
    "research.ablation.sweep",
    "research.cloud.forecast",
    "research.cloud.launch.engines",
    "research.cloud.launch.request",
    "research.decoding.stream_picture",
    "research.inspect.alignment_picture",
    "research.inspect.page",
    "research.inspect.inspecting",
    "research.tasks.tokens.preparing",
    "research.training.records.events",
    "research.training.loop",
)
"""What commands import when they run."""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run_cases(module: str, cases: Sequence[Sequence[str]], **environment: str) -> list[Outcome]:
    """Returns the outcome of `python -m module *case` for every case."""
    return run_commands([(module, case) for case in cases], **environment)


def run_commands(
    commands: Sequence[tuple[str, Sequence[str]]],
    directory: Path = ROOT,
    stdin: str = os.devnull,
    **environment: str,
) -> list[Outcome]:
    """Returns the outcomes of commands, one after the other.

    Args:
      commands: modules and their arguments.
      directory: where they are started.
      stdin: the file that they can read.
      **environment: variables beside those of this process.
    """
    request = {
        "commands": [(module, list(map(str, arguments))) for module, arguments in commands],
        "directory": str(directory),
        "stdin": str(stdin),
        "environment": os.environ | environment,
    }
    process = _forking()
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"the process that forks commands has ended: {process.poll()}"
    return [Outcome(**outcome) for outcome in json.loads(answer)]


@functools.cache
def _forking() -> subprocess.Popen:
    """The process that runs the commands; it ends with this one, when its requests do."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.commands"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    atexit.register(process.communicate)  # closes what it reads
    return process


def run_alone(module: str, *arguments: object, **environment: str) -> Outcome:
    """Returns the outcome of one command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=SECONDS,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def no_network(url: str, *_: object, **__: object) -> None:
    """Stands in for urlopen."""
    raise urllib.error.URLError("no network in tests")


def _case(module: str, arguments: list[str], stdin: str) -> Outcome:
    """Runs one case in a fork of this process."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            os.dup2(os.open(stdin, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(_code(module, arguments))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return Outcome(code, *texts)


def _code(module: str, arguments: list[str]) -> int:
    """Runs a command in this process; returns its exit code."""
    from research.command_line import run

    sys.stdin = open(0, closefd=False)
    sys.argv = [module, *arguments]
    try:
        package = hasattr(importlib.import_module(module), "__path__")
        command = importlib.import_module(f"{module}.__main__" if package else module)
        getattr(command, "define_flags", lambda: None)()
        run(command.main)
        code = 0
    except SystemExit as stop:
        code = 0 if stop.code is None else stop.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1


def main() -> None:
    """Reads requests, writes outcomes."""
    # A search for garbage in every fork would copy and walk all that was imported.
    gc.set_threshold(1_000_000)
    import jax

    # JAX warns of forks because a running backend has threads; none runs here yet.
    warnings.filterwarnings("ignore", message=".*fork.*")
    urllib.request.urlopen = no_network
    # Imported once here instead of in every fork.
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["directory"])
        os.environ.clear()
        os.environ.update(request["environment"])
        # JAX read it when it was imported.
        jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS"))
        outcomes = [vars(_case(*command, request["stdin"])) for command in request["commands"]]
        answers.write(json.dumps(outcomes) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
