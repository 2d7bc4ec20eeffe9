"""xpk: one workload per shard on a GKE cluster with TPU slices (JobSet and Kueue).

Flags as `xpk workload create --help` of xpk 1.16.0 lists them.
"""

from pathlib import Path

from research.cloud.launch import shell
from research.cloud.launch.job import MOUNT, Command, Job, Launch, Options, check_travels
from research.cloud.launch.names import legal_name, shard_names
from research.cloud.launch.skypilot import fetch
from research.errors import UserError
from research.parallel.slices import Slice, parse_slice

LIMIT = 39
BASE_IMAGE = "python:3.11"
RESTARTS = 100
CODE = "code"
"""Directory of what an image is built from."""


def make(job: Job, options: Options, folder: Path) -> Launch:
    """Returns one script and one workload per shard. Raises UserError."""
    check_travels(job)
    tpu = parse_slice(options.slice)
    # xpk's v5e node pools are of machines with four chips, two machines at least.
    if tpu.generation == "v5e" and tpu.chips < 8:
        raise UserError(f"slice={tpu}: xpk has v5e from 2x4 on; --engine=skypilot has smaller.")
    where = (f"--cluster={options.cluster}", f"--project={options.project}")
    where += (f"--zone={options.zone}",)
    name, names = legal_name(job.name, LIMIT), shard_names(job.name, job.shards, LIMIT)
    scripts = {n: script(job, options, tpu, name, i) for i, n in enumerate(names, 1)}
    storage = legal_name(f"attest-{options.bucket}", LIMIT)
    attach = ("xpk", "storage", "attach", storage, *where, "--type=gcsfuse", "--auto-mount=true")
    attach += (f"--bucket={options.bucket}", f"--mount-point={MOUNT}", "--readonly=false")
    # What git keeps, and not the virtual environment and results beside it.
    copy = ("git", "checkout-index", "--all", "--force", f"--prefix={folder / CODE}/")
    workloads = tuple(
        (
            *("xpk", "workload", "create", f"--workload={n}", *where),
            *(f"--tpu-type={tpu.accelerator_type}", f"--num-slices={tpu.count}"),
            f"--max-restarts={RESTARTS}",
            f"--termination-grace-period-seconds={shell.GRACE}",
            *image(options, folder, n, text),
        )
        for n, text in scripts.items()
    )
    return Launch(
        files={f"{n}.sh" if options.image else f"{CODE}/{n}.sh": t for n, t in scripts.items()},
        submit=(*(() if options.image else (copy,)), *workloads),
        once=((*attach, "--size=100"),),
        watch=(("xpk", "workload", "list", *where),),
        fetch=(fetch(job, options, name),),
        teardown=tuple(("xpk", "workload", "delete", f"--workload={n}", *where) for n in names),
        notes=(
            f"Results: gs://{options.bucket}/{name}",
            f"Each attempt is stopped after {options.hours} hours. The cluster's slices cost "
            "whether or not a workload runs: `xpk cluster delete` ends that.",
        ),
    )


def image(options: Options, folder: Path, name: str, text: str) -> Command:
    """Returns the flags of the container of a shard, and of its command.

    The files of an image that xpk builds hold the script; one that is given does not, so the
    command carries it. Either way neither the YAML that xpk writes, which a line break would end,
    nor Kubernetes, which reads $(NAME) in a container's command, sees anything of it.
    """
    if options.image:
        command = shell.in_one_word(text, "/tmp/attest.sh")
        return (f"--docker-image={options.image}", f"--command={command}")
    return (
        *(f"--base-docker-image={BASE_IMAGE}", f"--script-dir={folder / CODE}"),
        f"--command=exec bash {name}.sh",
    )


def script(job: Job, options: Options, tpu: Slice, name: str, shard: int) -> str:
    """Returns the bash that every container of a shard runs."""
    arguments = job.command(
        job.shard_flag(shard),
        python="python",
        workdir=f"{MOUNT}/{name}",
        distributed=tpu.distributed,
    )
    setup = (
        "" if options.image else "python -m pip install --quiet -r requirements-tpu.txt || exit\n"
    )
    command = shell.line(shell.limited(arguments, options.hours))
    return (
        "#!/usr/bin/env bash\nset -u\nexport PYTHONUNBUFFERED=1\n"
        + setup
        + shell.supervised(command, shell.RESTART)
        + 'exit "$code"\n'
    )
