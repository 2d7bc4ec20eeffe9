"""Slurm: an array job, one task per shard, that saves and queues itself again before its limit.

What is used of it: sbatch(1) --array, --requeue, --signal=B:TERM@seconds; srun(1), which hands
SIGTERM on to the tasks of a step; scontrol(1) requeue. JAX finds its coordinator from Slurm's
variables and takes one device per process by default (jax.distributed.initialize), so a run over
several nodes starts one process per GPU.
"""

from pathlib import Path

from research.cloud.launch import shell
from research.cloud.launch.job import Job, Launch, Options
from research.cloud.launch.names import legal_name
from research.errors import UserError

NOTICE = 120
"""Seconds before the time limit at which Slurm sends SIGTERM."""
REQUEUES = 100
"""After so many, something else than the time limit is wrong."""


def make(job: Job, options: Options, folder: Path) -> Launch:
    """Returns the batch script and its commands. Raises UserError."""
    if options.nodes > 1 and job.shards > 1:
        raise UserError(
            f"--nodes={options.nodes} makes one run larger and --shards={job.shards} makes several "
            "of a sweep; give one of them."
        )
    name, path = legal_name(job.name, 60), folder / "job.sbatch"
    array = job.shards > 1
    log = folder / ("%A_%a.log" if array else "%j.log")
    # Slurm reads % in the name of a log.
    output = str(log.parent).replace("%", "%%") + "/" + log.name
    submit = ("sbatch", f"--output={output}", str(path))
    return Launch(
        files={"job.sbatch": script(job, options, name)},
        submit=(submit,),
        watch=(("squeue", "--me", f"--name={name}"),),
        teardown=(("scancel", "--me", f"--name={name}"),),
        notes=(f"Logs: {log}", "The workdir has to be on a disk that every node sees."),
    )


def script(job: Job, options: Options, name: str) -> str:
    """Returns the batch script."""
    many = options.nodes > 1
    tasks = max(1, gpu_count(options.gpus)) if many else 1
    settings = [
        f"--job-name={name}",
        *([f"--array=1-{job.shards}"] if job.shards > 1 else []),
        f"--nodes={options.nodes}",
        f"--ntasks-per-node={tasks}",
        *([f"--gpus-per-node={options.gpus}"] if options.gpus else []),
        *([f"--cpus-per-task={options.cpus}"] if options.cpus else []),
        f"--time={options.hours}:00:00",
        *([f"--partition={options.partition}"] if options.partition else []),
        *([f"--account={options.account}"] if options.account else []),
        "--requeue",
        "--open-mode=append",
        f"--signal=B:TERM@{NOTICE}",
    ]
    header = "".join(f"#SBATCH {setting}\n" for setting in settings)
    step = ("srun", "--kill-on-bad-exit=1")
    # srun does not take this over from the job since Slurm 22.05.
    step += (f"--cpus-per-task={options.cpus}",) if options.cpus else ()
    shard = f'--shard="$SLURM_ARRAY_TASK_ID/{job.shards}"' if job.shards > 1 else ""
    arguments = job.command(shell.Bash(shard), python=job.python, distributed=many)
    command = shell.line((*step, *arguments))
    directory = shell.line(("cd", str(job.directory)))
    return f"""\
#!/usr/bin/env bash
{header}
# {REQUEUES} times at most: saves {NOTICE} s before the time limit, or when it is preempted, and
# queues itself again; the same command then goes on where it was.
{directory} || exit 1
export PYTHONUNBUFFERED=1
{shell.supervised(command, REQUEUE)}exit "$code"
"""


REQUEUE = f"""\
  # Exit code 2 is a mistake in the command, which would be made again.
  if [ "$code" != 2 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {REQUEUES} ]; then
    echo "stopped with code $code before it was finished; queued again"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
  fi
"""


def gpu_count(gpus: str) -> int:
    """Returns the number in "8" or "h100:8"; 0 for "". Raises UserError when it has none."""
    if not gpus:
        return 0
    number = gpus.split(":")[-1]
    if not number.isdigit():
        raise UserError(f"--gpus={gpus!r} must say how many, for example 8 or {gpus}:8.")
    return int(number)
