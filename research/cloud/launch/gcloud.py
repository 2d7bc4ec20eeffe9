"""Google Cloud alone: a queued resource per shard whose machines start themselves and delete it.

Flags as `gcloud compute tpus queued-resources create --help` lists them (GA). It has no maximum
lifetime (the alpha command has one, for flex-start only), so the startup script sets a timer that
deletes the queued resource; that needs a service account that may (roles/tpu.admin).
"""

from pathlib import Path

from research.cloud.launch import shell
from research.cloud.launch.job import MOUNT, Command, Job, Launch, Options, check_travels
from research.cloud.launch.names import legal_name, shard_names
from research.cloud.launch.skypilot import fetch
from research.errors import UserError
from research.parallel.slices import Slice, parse_slice

LIMIT = 50
QUEUE_HOURS = 12
"""After which a request that found no machine is dropped."""
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


def make(job: Job, options: Options, folder: Path) -> Launch:
    """Returns a startup script and a queued resource per shard. Raises UserError."""
    check_travels(job)
    tpu = parse_slice(options.slice)
    if not tpu.runtime:
        raise UserError(
            f"slice={tpu}: the Cloud TPU API has no {tpu.generation}; --engine=xpk has."
        )
    name, names = legal_name(job.name, LIMIT), shard_names(job.name, job.shards, LIMIT)
    bundle, code = str(folder / "code.bundle"), f"gs://{options.bucket}/{name}/code.bundle"
    requests = tuple(request(options, tpu, folder, shard_name) for shard_name in names)
    where = (f"--project={options.project}", f"--zone={options.zone}")
    resources = ("gcloud", "compute", "tpus", "queued-resources")
    look = "--command=tail -n 3 /var/log/attest.log"
    return Launch(
        files={
            f"{shard_name}.sh": startup(job, options, tpu, name, shard_name, shard)
            for shard, shard_name in enumerate(names, 1)
        },
        submit=(
            ("git", "bundle", "create", bundle, "HEAD"),
            ("gcloud", "storage", "cp", bundle, code),
            *requests,
        ),
        watch=(
            *((*resources, "describe", n, *where, "--format=value(state.state)") for n in names),
            *((*resources, "ssh", n, *where, "--node=all", "--worker=all", look) for n in names),
        ),
        fetch=(fetch(job, options, name),),
        teardown=tuple((*resources, "delete", n, *where, "--force", "--quiet") for n in names),
        notes=(
            f"Results: gs://{options.bucket}/{name}, each shard's log in logs/ there.",
            f"Machines delete themselves when they are done, and after {options.hours} hours at "
            "the latest, if their service account may (roles/tpu.admin); check with describe.",
            f"A request that finds no machine is dropped after {QUEUE_HOURS} hours. A spot slice "
            "that is taken away is not replaced: delete it and create it again; it goes on.",
            "The machines get the commit HEAD, without what is not committed.",
            "To install and start again by hand: the ssh command with "
            "--command='sudo google_metadata_script_runner startup'.",
        ),
    )


def request(options: Options, tpu: Slice, folder: Path, name: str) -> Command:
    """Returns the command that asks for the slices of a shard."""
    several = (f"--node-count={tpu.count}", f"--node-prefix={name}")
    return (
        *("gcloud", "compute", "tpus", "queued-resources", "create", name),
        *(f"--project={options.project}", f"--zone={options.zone}"),
        f"--accelerator-type={tpu.accelerator_type}",
        f"--runtime-version={tpu.runtime}",
        *(several if tpu.count > 1 else (f"--node-id={name}",)),
        *(("--spot",) if options.spot else ()),
        f"--valid-until-duration={QUEUE_HOURS}h",
        f"--scopes={SCOPE}",
        # A dictionary flag: another delimiter than the comma, which a path may hold.
        f"--metadata-from-file=^::^startup-script={folder / name}.sh",
    )


def startup(job: Job, options: Options, tpu: Slice, name: str, shard_name: str, shard: int) -> str:
    """Returns the script that every host of a shard's slices runs when it starts."""
    arguments = job.command(
        job.shard_flag(shard),
        python=shell.PYTHON,
        workdir=f"{MOUNT}/{name}",
        distributed=tpu.distributed,
    )
    command = shell.line(shell.limited(arguments, options.hours))
    delete = shell.line(
        (
            *("gcloud", "compute", "tpus", "queued-resources", "delete", shard_name),
            *(f"--project={options.project}", f"--zone={options.zone}"),
            *("--force", "--quiet", "--async"),
        ),
        indent="    ",
    )
    return f"""\
#!/usr/bin/env bash
# Runs as root on every host of {shard_name}, at every start of the machine.
set -u
export HOME=/root PYTHONUNBUFFERED=1
venv=/opt/attest-venv
log={MOUNT}/{name}/logs/{shard_name}-$(hostname).log
exec >> /var/log/attest.log 2>&1

give_back() {{
  {delete}
}}
keep_log() {{
  mkdir -p "${{log%/*}}" && cp /var/log/attest.log "$log"
}}
# The longest that this machine may live, whatever happens to what follows.
( trap '' HUP; sleep {options.hours}h; sleep {shell.GRACE}; keep_log; give_back ) &

{prepare(options.bucket, name)}( set -e; prepare )
if [ $? != 0 ]; then
  echo "the machine could not be set up"
  keep_log
  give_back
  exit 1
fi
cd /opt/attest || exit 1

{shell.supervised(command, STOPPED)}
echo "ended with code $code"
keep_log
sleep 120  # the other hosts keep their logs
give_back
exit "$code"
"""


def prepare(bucket: str, name: str) -> str:
    """Returns the bash function that mounts the bucket and installs the project.

    gcsfuse comes from its package repository, as cloud.google.com/storage/docs/cloud-storage-fuse
    /install has it.
    """
    return f"""\
prepare() {{
  if ! command -v gcsfuse > /dev/null; then
    release=gcsfuse-$(lsb_release -cs)
    key=/usr/share/keyrings/cloud.google.asc
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg > "$key"
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt $release main" \\
      > /etc/apt/sources.list.d/gcsfuse.list
    apt-get -qq -o DPkg::Lock::Timeout=300 update
    apt-get -qq -o DPkg::Lock::Timeout=300 install --yes gcsfuse
  fi
  mkdir -p {MOUNT}
  mountpoint -q {MOUNT} || gcsfuse --implicit-dirs {bucket} {MOUNT}
  [ -d /opt/attest ] || git clone --quiet {MOUNT}/{name}/code.bundle /opt/attest
  cd /opt/attest
{_indented(shell.install("requirements-tpu.txt"))}}}
"""


STOPPED = """\
  # The machine is going down; the queued resource stays, so that a restart goes on.
  keep_log
  exit "$code"
"""


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
