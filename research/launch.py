"""Starts a run or the shards of a sweep: on this machine, on a cluster, on Cloud TPU slices.

python -m research.launch --engine=local --experiment=experiments/attention_type.py \
    --workdir=runs/attention_type --shards=4
"""

import sys

from absl import flags

from research.cloud.launch.request import define_options, parse_job, parse_options
from research.command_line import define_config_flag, run
from research.runs.bucket import local_workdir

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
define_options()


def main() -> int:
    """Starts a job here, or writes and shows the files to start it elsewhere (--submit does so)."""
    from research.cloud.launch import engines, local
    from research.cloud.launch.devices import assign_devices, local_devices

    given = flags.FLAGS
    options = parse_options(given, engines.options_taken(given.engine))
    engines.check_options(given.engine, options)
    folder = local_workdir(given.workdir, "research.launch") / "launch" / given.engine
    if given.engine == engines.LOCAL:
        devices = local_devices()
        job = parse_job(given, sys.argv, default_shards=max(1, len(devices.ids)))
        bindings = assign_devices(devices, job.shards)
        if given.dry_run:
            print(local.preview(job, bindings))
            return 0
        return local.run(job, bindings, folder)
    job = parse_job(given, sys.argv, default_shards=1)
    launch = engines.make_launch(given.engine, job, options, folder)
    if not given.dry_run:
        engines.write(launch)
    print(engines.describe(launch, written=not given.dry_run))
    if given.dry_run or not given.submit:
        return 0
    engines.check_arms(job)
    return engines.submit(launch, given.yes)


if __name__ == "__main__":
    run(main)
