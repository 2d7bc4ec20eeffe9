"""Engines for other machines: their options, and the files and commands written for them.

Scheduling and recovery are left to the programs (sbatch, sky, xpk, gcloud), whose files are filled
in from templates/. Flags follow Slurm's manual pages, docs.skypilot.co (managed jobs), `xpk
workload create --help` 1.16.0 and `gcloud compute tpus queued-resources create --help`.
"""

import base64
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from research.cloud.launch.request import Job, Options
from research.cloud.launch.templates import fill, fill_block, legal_name, shard_names
from research.errors import UserError
from research.parallel.slices import parse_slice
from research.runs.store import write_text

LOCAL = "local"


class Launch(NamedTuple):
    """Files and commands that start a job on an engine.

    Attributes:
      engine: name of the engine.
      folder: folder of the files.
      files: {file name: text}.
      values: values for the engine's templates.
    """

    engine: str
    folder: Path
    files: Mapping[str, str]
    values: Mapping[str, Any]

    def commands(self, block: str) -> str:
        """Returns the bash commands of a block: once, submit, watch, fetch or teardown; or ""."""
        return fill_block(f"{self.engine}.txt", block, **self.values)


def _slurm(values: dict[str, Any]) -> dict[str, str]:
    job, options = values["job"], values["options"]
    if options.nodes > 1 and job.shards > 1:
        raise UserError(
            f"--nodes={options.nodes} makes one run larger and --shards={job.shards} makes several "
            "of a sweep; give one of them."
        )
    # If JAX finds its coordinator from Slurm's variables, it takes one device per process.
    tasks = max(1, _gpu_count(options.gpus)) if options.nodes > 1 else 1
    values["pattern"] = "%A_%a.log" if job.shards > 1 else "%j.log"
    return {"job.sbatch": fill("slurm.sbatch", tasks=tasks, **values)}


def _gpu_count(gpus: str) -> int:
    """Returns the number of GPUs in "8" or "h100:8"; 0 for "". Raises UserError for other text."""
    number = gpus.split(":")[-1] or "0"
    if not number.isdigit():
        raise UserError(f"--gpus={gpus!r} must give a number, for example 8 or {gpus}:8.")
    return int(number)


def _skypilot(values: dict[str, Any]) -> dict[str, str]:
    options, tpu = values["options"], values["tpu"]
    if bool(options.slice) == bool(options.gpus):
        raise UserError("skypilot takes either --slice=v5e:4x4 or --gpus=H100:8.")
    if tpu and tpu.count > 1:
        raise UserError(f"slice={tpu}: SkyPilot cannot join slices; --engine=xpk and gcloud can.")
    setup = fill("skypilot_setup.sh", kind="tpu" if tpu else "gpu")
    run = fill("skypilot_run.sh", **values)
    return {"task.yaml": fill("skypilot.yaml", setup=setup, run=run, **values)}


def _xpk(values: dict[str, Any]) -> dict[str, str]:
    options, tpu = values["options"], values["tpu"]
    # xpk's v5e node pools have at least two machines with four chips each.
    if tpu.generation == "v5e" and tpu.chips < 8:
        raise UserError(f"slice={tpu}: xpk has v5e from 2x4 on; --engine=skypilot has smaller.")
    scripts = {
        shard: fill("xpk.sh", number=i, **values) for i, shard in enumerate(values["shards"], 1)
    }
    values["storage"] = legal_name(f"attest-{options.bucket}", ENGINES["xpk"].limit)
    # Scripts travel as files or in base64, never verbatim in the container's command: a line break
    # would break the YAML that xpk writes, and Kubernetes expands $(NAME) in commands.
    if not options.image:
        values["commands"] = {shard: f"exec bash {shard}.sh" for shard in scripts}
        return {f"code/{shard}.sh": text for shard, text in scripts.items()}
    carried = {shard: base64.b64encode(text.encode()).decode() for shard, text in scripts.items()}
    values["commands"] = {
        shard: f"echo {text} | base64 -d > /tmp/attest.sh && exec bash /tmp/attest.sh"
        for shard, text in carried.items()
    }
    return {f"{shard}.sh": text for shard, text in scripts.items()}


def _gcloud(values: dict[str, Any]) -> dict[str, str]:
    return {
        f"{shard}.sh": fill("gcloud.sh", number=i, shard=shard, kind="tpu", **values)
        for i, shard in enumerate(values["shards"], 1)
    }


class Engine(NamedTuple):
    """A way to start jobs on other machines.

    Attributes:
      files: (template values) -> {file name: text}; also adds the values that its commands need.
      program: executable that its commands need.
      install: how to install the program.
      limit: maximum length of a job name.
      needs, takes: required options, and the other options that it reads.
    """

    files: Callable[[dict[str, Any]], dict[str, str]]
    program: str
    install: str
    limit: int
    needs: tuple[str, ...]
    takes: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """All options that the engine reads."""
        return (*self.needs, *self.takes)


ENGINES = {
    "slurm": Engine(
        _slurm,
        "sbatch",
        "Slurm's programs are installed by a cluster's administrators; run this on a login node.",
        60,
        (),
        ("gpus", "nodes", "cpus", "hours", "partition", "account"),
    ),
    "skypilot": Engine(
        _skypilot,
        "sky",
        'python3 -m venv ~/skypilot && ~/skypilot/bin/pip install "skypilot[gcp]==0.14.1", in an '
        "environment of its own",
        40,
        ("bucket",),
        ("slice", "gpus", "hours", "spot", "zone"),
    ),
    "xpk": Engine(
        _xpk,
        "xpk",
        "python3 -m venv ~/xpk && ~/xpk/bin/pip install xpk==1.16.0, in an environment of its own",
        39,
        ("slice", "bucket", "cluster", "project", "zone"),
        ("hours", "image"),
    ),
    "gcloud": Engine(
        _gcloud,
        "gcloud",
        "https://cloud.google.com/sdk/docs/install",
        50,
        ("slice", "bucket", "project", "zone"),
        ("hours", "spot"),
    ),
}


def options_taken(name: str) -> tuple[str, ...]:
    """Returns the names of the options that an engine reads."""
    return ENGINES[name].reads if name in ENGINES else ()


def check_options(name: str, options: Options) -> None:
    """Raises UserError for an option that is missing, invalid, or not read by the engine."""
    given = options.given()
    needs = ENGINES[name].needs if name in ENGINES else ()
    lacking = [f"--{option}" for option in needs if option not in given]
    if lacking:
        raise UserError(f"--engine={name} needs {', '.join(lacking)}.")
    for option, value in given.items():
        if option not in options_taken(name):
            which = [n for n, engine in ENGINES.items() if option in engine.reads]
            raise UserError(
                f"--{option}={value!r} has no effect with --engine={name}; it is an option of "
                f"{', '.join(which)}."
            )
    options.check()


def make_launch(name: str, job: Job, options: Options, folder: Path) -> Launch:
    """Returns the files and commands for a job. Raises UserError if the engine cannot run it."""
    engine, tpu = ENGINES[name], None
    travels = not job.source.is_absolute() and ".." not in job.source.parts
    if "bucket" in engine.needs and not travels:
        raise UserError(
            f"{str(job.source)!r} must be a path inside the current directory, which is what is "
            "copied to the rented machines."
        )
    if options.slice:
        tpu = parse_slice(options.slice)
        if not tpu.runtime and name != "xpk":
            raise UserError(
                f"slice={tpu}: the Cloud TPU API has no {tpu.generation}; --engine=xpk has."
            )
    values = {
        "job": job,
        "options": options,
        "folder": str(folder),
        "name": legal_name(job.name, engine.limit),
        "shards": shard_names(job.name, job.shards, engine.limit),
        "tpu": tpu,
    }
    return Launch(name, folder, engine.files(values), values)


def describe(launch: Launch, written: bool) -> str:
    """Returns instructions with the commands to type; includes the files if none was written."""
    paths = {str(launch.folder / file): text for file, text in launch.files.items()}
    if written:
        parts = ["Written: " + ", ".join(paths)]
    else:
        parts = [f"{path}:\n{text}" for path, text in paths.items()]
    parts.append(fill(f"{launch.engine}.txt", **launch.values).rstrip("\n"))
    if not shutil.which(ENGINES[launch.engine].program):
        parts.append(missing_program(launch.engine))
    return "\n".join(parts)


def missing_program(name: str) -> str:
    """Returns the error message for a missing program of an engine, with how to install it."""
    engine = ENGINES[name]
    return f"The program {engine.program!r} is not on this machine's PATH: {engine.install}"


def write(launch: Launch) -> None:
    """Writes the files of a launch, and its commands as scripts in the same folder."""
    for name, text in launch.files.items():
        write_text(launch.folder / name, text)
    # Without `set -e`, a teardown goes on if one of the resources is already gone.
    for name, start in (("submit", "set -ex\n"), ("teardown", "")):
        text = f"#!/usr/bin/env bash\n{start}{launch.commands(name)}"
        write_text(launch.folder / f"{name}.sh", text)


def check_arms(job: Job) -> None:
    """Raises UserError for a sweep with an invalid arm, before any machine is paid for."""
    if job.module == "research.sweep":
        from research.ablation.loading import use_profile_of
        from research.ablation.sweep import prepare

        use_profile_of(str(job.source))
        prepare(str(job.source), Path(job.workdir))


def submit(launch: Launch, yes: bool) -> int:
    """Runs the submit script after asking for a typed "yes"; returns its exit code.

    Raises UserError if stdin is not a terminal, the answer is not "yes", or the program is missing.
    """
    if not shutil.which(ENGINES[launch.engine].program):
        raise UserError(missing_program(launch.engine))
    if not yes:
        confirm()
    code = subprocess.run(["bash", str(launch.folder / "submit.sh")]).returncode
    if code:
        print(
            f"The last command ended with code {code}; nothing after it was run. What began before "
            f"it is stopped by {launch.folder / 'teardown.sh'}."
        )
    return code


def confirm() -> None:
    """Asks for a "yes" before starting anything that may cost money, else raises UserError."""
    if not sys.stdin.isatty():
        raise UserError(
            "--submit asks before it starts anything, but there is no terminal; add --yes."
        )
    answer = input('This starts machines that may cost money. Type "yes" to go on: ')
    if answer.strip().lower() != "yes":
        raise UserError(f"not started: the answer was {answer!r}, not 'yes'.")
