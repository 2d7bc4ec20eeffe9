"""SkyPilot: managed jobs, one per shard, that find spot machines and start again after preemption.

The file is a task as docs.skypilot.co describes it (YAML spec; managed jobs; TPUs). One file
serves all shards: the shard is an environment variable of the submission.
"""

import json
from pathlib import Path

from research.cloud.launch import shell
from research.cloud.launch.job import MOUNT, Job, Launch, Options, check_travels
from research.cloud.launch.names import legal_name, shard_names
from research.errors import UserError
from research.parallel.slices import Slice, parse_slice

LIMIT = 40
VENV = 'venv="$HOME/attest-venv"\n'


def make(job: Job, options: Options, folder: Path) -> Launch:
    """Returns the task and its commands. Raises UserError."""
    check_travels(job)
    if bool(options.slice) == bool(options.gpus):
        raise UserError("skypilot takes either --slice=v5e:4x4 or --gpus=H100:8.")
    tpu = parse_slice(options.slice) if options.slice else None
    if tpu and tpu.count > 1:
        raise UserError(f"slice={tpu}: SkyPilot joins no slices; --engine=xpk and gcloud do.")
    if tpu and not tpu.runtime:
        raise UserError(
            f"slice={tpu}: the Cloud TPU API has no {tpu.generation}; --engine=xpk has."
        )
    name, names = legal_name(job.name, LIMIT), shard_names(job.name, job.shards, LIMIT)
    path = str(folder / "task.yaml")
    submit = tuple(
        (
            *("sky", "jobs", "launch", "--yes", "--detach-run", f"--name={shard_name}"),
            *("--env", f"SHARD={i}/{job.shards}", path),
        )
        for i, shard_name in enumerate(names, 1)
    )
    return Launch(
        files={"task.yaml": task(job, options, tpu, name)},
        submit=submit,
        watch=(("sky", "jobs", "queue"),),
        fetch=(fetch(job, options, name),),
        teardown=tuple(("sky", "jobs", "cancel", "--yes", f"--name={n}") for n in names),
        notes=(
            f"Results: gs://{options.bucket}/{name}",
            f"Each attempt is stopped after {options.hours} hours; a job's machine ends with it.",
            "Jobs are recovered by a small machine of SkyPilot's, which stops itself when idle; "
            "`sky down` removes it.",
        ),
    )


def fetch(job: Job, options: Options, name: str) -> tuple[str, ...]:
    """Returns the command that copies the results from the bucket into the workdir."""
    source = f"gs://{options.bucket}/{name}"
    return ("gcloud", "storage", "rsync", "--recursive", source, str(job.workdir))


def task(job: Job, options: Options, tpu: Slice | None, name: str) -> str:
    """Returns the YAML of the task."""
    if tpu:
        accelerators = f"tpu-{tpu.accelerator_type}"
        runtime = f"  accelerator_args:\n    runtime_version: {tpu.runtime}\n"
    else:
        accelerators, runtime = options.gpus, ""
    infra = f"gcp/*/{options.zone}" if options.zone else "gcp"
    requirements = "requirements-tpu.txt" if tpu else "requirements-gpu.txt"
    setup = "set -eu\n" + VENV + shell.install(requirements)
    return f"""\
# sky jobs launch --env SHARD=i/{job.shards} task.yaml
name: {name}
workdir: .
envs:
  SHARD: {json.dumps(f"1/{job.shards}")}
resources:
  infra: {infra}
  accelerators: {json.dumps(accelerators)}
{runtime}  use_spot: {json.dumps(options.spot)}
  job_recovery:
    strategy: EAGER_NEXT_REGION
    max_restarts_on_errors: 0
    recover_on_exit_codes: [143]  # saved because the machine was taken away
file_mounts:
  {MOUNT}:
    source: gs://{options.bucket}
    mode: MOUNT
setup: {block(setup)}
run: {block(run(job, options, tpu, name))}"""


def run(job: Job, options: Options, tpu: Slice | None, name: str) -> str:
    """Returns the bash that every host of a machine runs."""
    arguments = job.command(
        shell.Bash('--shard="$SHARD"' if job.shards > 1 else ""),
        python=shell.PYTHON,
        workdir=f"{MOUNT}/{name}",
        distributed=tpu is not None and tpu.distributed,
    )
    return (
        f"set -u\n{VENV}export PYTHONUNBUFFERED=1\n"
        + shell.supervised(shell.line(shell.limited(arguments, options.hours)), shell.RESTART)
        + 'exit "$code"\n'
    )


def block(text: str) -> str:
    """Returns a YAML scalar of several lines: as it is where YAML allows, else as one string."""
    if all(c.isprintable() or c == "\n" for c in text):
        return "|\n" + "".join(f"  {line}\n" if line else "\n" for line in text.split("\n")[:-1])
    return json.dumps(text) + "\n"
