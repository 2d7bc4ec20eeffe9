"""Runs a command many times for the price of one interpreter start: each case is a fork.

python -m tests.commands research.train < cases.json > outcomes.json

A case is a list of arguments. The fork happens before any device is touched, so every case meets
the command as a fresh process would, with its own flags, its own files and no network.
"""

import gc
import importlib
import json
import os
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


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run_cases(module: str, cases: Sequence[Sequence[str]], **environment: str) -> list[Outcome]:
    """Returns the outcome of `python -m module *case` for every case."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.commands", module],
        input=json.dumps([list(map(str, case)) for case in cases]),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [Outcome(**outcome) for outcome in json.loads(done.stdout)]


def run_alone(module: str, *arguments: object, **environment: str) -> Outcome:
    """Returns the outcome of one command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        timeout=600,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def no_network(url: str, *_: object, **__: object) -> None:
    """Stands in for urlopen."""
    raise urllib.error.URLError("no network in tests")


def _case(module: str, arguments: list[str]) -> Outcome:
    """Runs one case in a fork of this process."""
    from research.configuration import run

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = [module, *arguments]
            try:
                run(importlib.import_module(module).main)
            except SystemExit as stop:
                code = stop.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 0 if code is None else 1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return Outcome(code, *texts)


def main() -> None:
    """Reads cases, writes outcomes."""
    (module,) = sys.argv[1:]
    # JAX warns of forks because a running backend has threads; none runs here yet.
    warnings.filterwarnings("ignore", message=".*fork.*")
    urllib.request.urlopen = no_network
    importlib.import_module(module)
    # Imported once here instead of in every fork.
    for name in ("research.ablation.sweep", "research.training.loop"):
        importlib.import_module(name)
    # A search for garbage in every fork would copy and walk all that was imported.
    gc.freeze()
    gc.set_threshold(1_000_000)
    outcomes = [vars(_case(module, case)) for case in json.load(sys.stdin)]
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
