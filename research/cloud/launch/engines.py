"""Other machines: what each engine can be asked for, and the files and commands it is given.

Nothing here schedules or recovers anything: that is for the programs (sbatch, sky, xpk, gcloud)
whose files are filled in from templates/. Flags are those of Slurm's manual pages, of
docs.skypilot.co (managed jobs), of `xpk workload create --help` 1.16.0 and of `gcloud compute tpus
queued-resources create --help`.
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
    """What is written and told for a job.

    Attributes:
      engine: its name.
      folder: where the files are.
      files: {name: text}.
      values: that the engine's templates take.
    """

    engine: str
    folder: Path
    files: Mapping[str, str]
    values: Mapping[str, Any]

    def commands(self, block: str) -> str:
        """Returns the bash of once, submit, watch, fetch or teardown; "" where it has none."""
        return fill_block(f"{self.engine}.txt", block, **self.values)


def _slurm(values: dict[str, Any]) -> dict[str, str]:
    job, options = values["job"], values["options"]
    if options.nodes > 1 and job.shards > 1:
        raise UserError(
            f"--nodes={options.nodes} makes one run larger and --shards={job.shards} makes several "
            "of a sweep; give one of them."
        )
    # JAX takes one device per process where it finds its coordinator from Slurm's variables.
    tasks = max(1, _gpu_count(options.gpus)) if options.nodes > 1 else 1
    values["pattern"] = "%A_%a.log" if job.shards > 1 else "%j.log"
    return {"job.sbatch": fill("slurm.sbatch", tasks=tasks, **values)}


def _gpu_count(gpus: str) -> int:
    """Returns the number in "8" or "h100:8"; 0 for "". Raises UserError when it has none."""
    number = gpus.split(":")[-1] or "0"
    if not number.isdigit():
        raise UserError(f"--gpus={gpus!r} must say how many, for example 8 or {gpus}:8.")
    return int(number)


def _skypilot(values: dict[str, Any]) -> dict[str, str]:
    options, tpu = values["options"], values["tpu"]
    if bool(options.slice) == bool(options.gpus):
        raise UserError("skypilot takes either --slice=v5e:4x4 or --gpus=H100:8.")
    if tpu and tpu.count > 1:
        raise UserError(f"slice={tpu}: SkyPilot joins no slices; --engine=xpk and gcloud do.")
    setup = fill("skypilot_setup.sh", kind="tpu" if tpu else "gpu")
    run = fill("skypilot_run.sh", **values)
    return {"task.yaml": fill("skypilot.yaml", setup=setup, run=run, **values)}


def _xpk(values: dict[str, Any]) -> dict[str, str]:
    options, tpu = values["options"], values["tpu"]
    # xpk's v5e node pools are of machines with four chips, two machines at least.
    if tpu.generation == "v5e" and tpu.chips < 8:
        raise UserError(f"slice={tpu}: xpk has v5e from 2x4 on; --engine=skypilot has smaller.")
    scripts = {
        shard: fill("xpk.sh", number=i, **values) for i, shard in enumerate(values["shards"], 1)
    }
    values["storage"] = legal_name(f"attest-{options.bucket}", ENGINES["xpk"].limit)
    # Neither the YAML that xpk writes, which a line break would end, nor Kubernetes, which reads
    # $(NAME) in a container's command, may see anything of a script.
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
    """How work is started elsewhere.

    Attributes:
      files: (values of the templates) -> {name: text}; adds what its commands need to the values.
      program: that its commands need.
      install: how one gets the program.
      limit: of the length of a name.
      needs, takes: options that must be given, and the others that it reads.
    """

    files: Callable[[dict[str, Any]], dict[str, str]]
    program: str
    install: str
    limit: int
    needs: tuple[str, ...]
    takes: tuple[str, ...]

    @property
    def reads(self) -> tuple[str, ...]:
        """All of its options."""
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
    """Raises UserError for an option that the engine lacks, does not read, or that is not one."""
    given = options.given()
    needs = ENGINES[name].needs if name in ENGINES else ()
    lacking = [f"--{option}" for option in needs if option not in given]
    if lacking:
        raise UserError(f"--engine={name} needs {', '.join(lacking)}.")
    for option, value in given.items():
        if option not in options_taken(name):
            which = [n for n, engine in ENGINES.items() if option in engine.reads]
            raise UserError(
                f"--{option}={value!r} means nothing to --engine={name}; it is an option of "
                f"{', '.join(which)}."
            )
    options.check()


def make(name: str, job: Job, options: Options, folder: Path) -> Launch:
    """Returns what an engine is given for a job. Raises UserError for what it cannot do."""
    engine, tpu = ENGINES[name], None
    travels = not job.source.is_absolute() and ".." not in job.source.parts
    if "bucket" in engine.needs and not travels:
        raise UserError(
            f"{str(job.source)!r} must be a path inside of the current directory: that is what the "
            "rented machines get a copy of."
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
    """Returns what a person has to know and to type; all of the files where none was written."""
    paths = {str(launch.folder / file): text for file, text in launch.files.items()}
    if written:
        parts = ["Written: " + ", ".join(paths)]
    else:
        parts = [f"{path}:\n{text}" for path, text in paths.items()]
    parts.append(fill(f"{launch.engine}.txt", **launch.values).rstrip("\n"))
    if not shutil.which(ENGINES[launch.engine].program):
        parts.append(missing(launch.engine))
    return "\n".join(parts)


def missing(name: str) -> str:
    """Returns how to get the program of an engine that is not there."""
    engine = ENGINES[name]
    return f"The program {engine.program!r} is not on this machine's PATH: {engine.install}"


def write(launch: Launch) -> None:
    """Writes the files, and the commands beside them as scripts."""
    for name, text in launch.files.items():
        write_text(launch.folder / name, text)
    # All of a teardown is tried, also when a part is gone already.
    for name, start in (("submit", "set -ex\n"), ("teardown", "")):
        text = f"#!/usr/bin/env bash\n{start}{launch.commands(name)}"
        write_text(launch.folder / f"{name}.sh", text)


def check_arms(job: Job) -> None:
    """Raises UserError for a sweep with an arm that makes no sense, before machines are paid."""
    if job.module == "research.sweep":
        from research.ablation.sweep import prepare

        prepare(str(job.source), Path(job.workdir))


def submit(launch: Launch, yes: bool) -> int:
    """Runs the script that starts it, after a typed "yes"; returns its exit code.

    Raises UserError when nobody can be asked, or when the program is missing.
    """
    if not shutil.which(ENGINES[launch.engine].program):
        raise UserError(missing(launch.engine))
    if not yes:
        agree()
    code = subprocess.run(["bash", str(launch.folder / "submit.sh")]).returncode
    if code:
        print(
            f"The last command ended with code {code}; nothing after it was run. What began before "
            f"it is stopped by {launch.folder / 'teardown.sh'}."
        )
    return code


def agree() -> None:
    """Asks before anything is started that may cost money. Raises UserError without a "yes"."""
    if not sys.stdin.isatty():
        raise UserError(
            "--submit asks before it starts anything, and here is no terminal to ask on; add --yes."
        )
    answer = input('This starts machines that may cost money. Type "yes" to go on: ')
    if answer.strip().lower() != "yes":
        raise UserError(f"not started: the answer was {answer!r}, not 'yes'.")
