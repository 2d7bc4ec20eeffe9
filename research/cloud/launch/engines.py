"""The table of engines that start work on other machines, and what becomes of their files."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from research.cloud.launch import gcloud, skypilot, slurm, xpk
from research.cloud.launch.job import Job, Launch, Options
from research.cloud.launch.names import PATTERNS, check_option
from research.cloud.launch.shell import line
from research.errors import UserError
from research.runs.store import write_text

LOCAL = "local"


class Engine(NamedTuple):
    """How work is started elsewhere.

    Attributes:
      make: (job, options, directory of the files) -> what is written and run.
      program: that its commands need.
      install: how one gets the program.
      needs, takes: options that must be given, and the others that it reads.
    """

    make: Callable[[Job, Options, Path], Launch]
    program: str
    install: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]


ENGINES = {
    "slurm": Engine(
        slurm.make,
        "sbatch",
        "Slurm's programs are installed by a cluster's administrators; run this on a login node.",
        (),
        ("gpus", "nodes", "cpus", "hours", "partition", "account"),
    ),
    "skypilot": Engine(
        skypilot.make,
        "sky",
        'python3 -m venv ~/skypilot && ~/skypilot/bin/pip install "skypilot[gcp]==0.14.1", in an '
        "environment of its own",
        ("bucket",),
        ("slice", "gpus", "hours", "spot", "zone"),
    ),
    "xpk": Engine(
        xpk.make,
        "xpk",
        "python3 -m venv ~/xpk && ~/xpk/bin/pip install xpk==1.16.0, in an environment of its own",
        ("slice", "bucket", "cluster", "project", "zone"),
        ("hours", "image"),
    ),
    "gcloud": Engine(
        gcloud.make,
        "gcloud",
        "https://cloud.google.com/sdk/docs/install",
        ("slice", "bucket", "project", "zone"),
        ("hours", "spot"),
    ),
}


def options_taken(name: str) -> tuple[str, ...]:
    """Returns the names of the options that an engine reads."""
    return (*ENGINES[name].needs, *ENGINES[name].takes) if name in ENGINES else ()


def check_options(name: str, options: Options) -> None:
    """Raises UserError for an option that the engine lacks, does not read, or that is not one."""
    given = options.given()
    needs = ENGINES[name].needs if name in ENGINES else ()
    lacking = [f"--{option}" for option in needs if option not in given]
    if lacking:
        raise UserError(f"--engine={name} needs {', '.join(lacking)}.")
    for option, value in given.items():
        if option not in options_taken(name):
            which = [n for n, e in ENGINES.items() if option in (*e.needs, *e.takes)]
            raise UserError(
                f"--{option}={value!r} means nothing to --engine={name}; it is an option of "
                f"{', '.join(which)}."
            )
    for option in PATTERNS:
        check_option(option, str(getattr(options, option)))
    for option, least in (("hours", 1), ("nodes", 1), ("cpus", 0)):
        if getattr(options, option) < least:
            raise UserError(f"--{option}={getattr(options, option)} must be at least {least}.")


def describe(launch: Launch, name: str, folder: Path, written: bool) -> str:
    """Returns what a person has to know and to type; all of the files where none was written."""
    parts = []
    for file, text in launch.files.items():
        parts.append(str(folder / file) + ("" if written else f":\n{text}"))
    if written:
        parts[:] = ["Written: " + ", ".join(parts)]
    for title, commands in (
        ("Once, if it was not done for another job", launch.once),
        ("To start", launch.submit),
        ("To watch", launch.watch),
        ("To bring the results here", launch.fetch),
        ("To stop, and give everything back", launch.teardown),
    ):
        if commands:
            parts.append(f"{title}:\n" + "\n".join(f"  {line(c, '      ')}" for c in commands))
    parts += launch.notes
    if not shutil.which(ENGINES[name].program):
        parts.append(missing(name))
    return "\n".join(parts)


def missing(name: str) -> str:
    """Returns how to get the program of an engine that is not there."""
    engine = ENGINES[name]
    return f"The program {engine.program!r} is not on this machine's PATH: {engine.install}"


def write(launch: Launch, folder: Path) -> None:
    """Writes the files, and the commands beside them as scripts."""
    for name, text in launch.files.items():
        write_text(folder / name, text)
    for name, commands in (("submit", launch.submit), ("teardown", launch.teardown)):
        # All of a teardown is tried, also when a part is gone already.
        start = "#!/usr/bin/env bash\n" + ("set -e\n" if name == "submit" else "")
        text = start + "".join(f"{line(c)}\n" for c in commands)
        write_text(folder / f"{name}.sh", text)


def check_arms(job: Job) -> None:
    """Raises UserError for a sweep with an arm that makes no sense, before machines are paid."""
    if job.module == "research.sweep":
        from research.ablation.sweep import prepare

        prepare(str(job.source), Path(job.workdir))


def submit(launch: Launch, name: str, yes: bool) -> int:
    """Runs the commands that start it, after a typed "yes"; returns the first code that is not 0.

    Raises UserError when nobody can be asked, or when the program is missing.
    """
    if not shutil.which(ENGINES[name].program):
        raise UserError(missing(name))
    if not yes:
        agree()
    for command in launch.submit:
        print(f"+ {line(command)}", flush=True)
        code = subprocess.run(command).returncode
        if code:
            began = launch.submit[: launch.submit.index(command)]
            print(f"{command[0]} ended with code {code}; nothing after it was run.")
            if any(c[0] == ENGINES[name].program for c in began):
                print("What began before it is stopped by the commands above.")
            return code
    return 0


def agree() -> None:
    """Asks before anything is started that may cost money. Raises UserError without a "yes"."""
    if not sys.stdin.isatty():
        raise UserError(
            "--submit asks before it starts anything, and here is no terminal to ask on; add --yes."
        )
    answer = input('This starts machines that may cost money. Type "yes" to go on: ')
    if answer.strip().lower() != "yes":
        raise UserError(f"not started: the answer was {answer!r}, not 'yes'.")
