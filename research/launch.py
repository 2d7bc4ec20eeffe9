"""Starts a run or the shards of a sweep: on this machine, on a cluster, on Cloud TPU slices.

python -m research.launch --engine=local --experiment=experiments/attention_type.py \
    --workdir=runs/attention_type --shards=4
"""

import sys
from pathlib import Path

from absl import flags

from research.command_line import define_config_flag, run

define_config_flag()
flags.DEFINE_enum(
    "engine", "local", ["local", "slurm", "skypilot", "xpk", "gcloud"], "Where it runs."
)
flags.DEFINE_string("experiment", None, "Experiment file: experiments/NAME.py")
flags.DEFINE_string("workdir", None, "Directory of the run or sweep.", required=True)
flags.DEFINE_integer(
    "shards", 0, "Parts of the sweep, side by side; 0: one per device here, else 1.", lower_bound=0
)
flags.DEFINE_boolean("retry_failed", False, "Trains failed runs of a sweep again.")
flags.DEFINE_boolean("dry_run", False, "Shows everything; writes and starts nothing.")
flags.DEFINE_boolean("submit", False, "Starts it after asking; without, it is written and shown.")
flags.DEFINE_boolean("yes", False, "Starts it without asking.")
flags.DEFINE_string("slice", None, "TPU slice of one shard, such as v5e:4x4 or 2*v5e:16x16.")
flags.DEFINE_string("gpus", "", "GPUs of one machine: H100:8 (skypilot), 8 or h100:8 (slurm).")
flags.DEFINE_integer("nodes", 1, "Machines of one run (slurm).")
flags.DEFINE_integer("cpus", 0, "Cores of a process (slurm); 0: the cluster's default.")
flags.DEFINE_integer("hours", 24, "After which a machine saves, stops and is given back.")
flags.DEFINE_boolean("spot", False, "Cheaper machines that may be taken away (skypilot, gcloud).")
flags.DEFINE_string("partition", "", "Slurm partition.")
flags.DEFINE_string("account", "", "Slurm account.")
flags.DEFINE_string("project", "", "Google Cloud project (xpk, gcloud).")
flags.DEFINE_string("zone", "", "Google Cloud zone (xpk, gcloud, skypilot).")
flags.DEFINE_string("cluster", "", "GKE cluster (xpk).")
flags.DEFINE_string("bucket", "", "Cloud Storage bucket of the workdir (skypilot, xpk, gcloud).")
flags.DEFINE_string("image", "", "Container image that holds this project (xpk).")


def main() -> int:
    """Starts a job here, or writes, shows and with --submit starts it elsewhere."""
    from research.cloud.launch import engines, local
    from research.cloud.launch.devices import deal, local_devices
    from research.cloud.launch.job import launch_directory
    from research.cloud.launch.request import job_of, options_of

    given = flags.FLAGS
    options = options_of(given, engines.options_taken(given.engine))
    engines.check_options(given.engine, options)
    folder = launch_directory(Path(given.workdir), given.engine)
    if given.engine == engines.LOCAL:
        devices = local_devices()
        job = job_of(given, sys.argv, default_shards=max(1, len(devices.ids)))
        bindings = deal(devices, job.shards)
        if given.dry_run:
            print(local.preview(job, bindings))
            return 0
        return local.run(job, bindings, folder)
    job = job_of(given, sys.argv, default_shards=1)
    launch = engines.ENGINES[given.engine].make(job, options, folder)
    if not given.dry_run:
        engines.write(launch, folder)
    print(engines.describe(launch, given.engine, folder, written=not given.dry_run))
    if given.dry_run or not given.submit:
        return 0
    engines.check_arms(job)
    return engines.submit(launch, given.engine, given.yes)


if __name__ == "__main__":
    run(main)
