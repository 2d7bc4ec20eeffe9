"""Jobs and options of every engine."""

from pathlib import Path, PurePosixPath

from research.cloud.launch.engines import Launch, check_options, make_launch
from research.cloud.launch.request import Job, Options

SWEEP = Job(
    "research.sweep",
    ("--experiment=experiments/head_count.py",),
    PurePosixPath("experiments/head_count.py"),
    PurePosixPath("runs/head_count"),
    shards=2,
    python="/home/me/attest/.venv/bin/python",
    directory=PurePosixPath("/home/me/attest"),
)
RUN = Job(
    "research.train",
    ("--config=configs/text.py", "--config.model.width=256", "--config.model.pattern=('', '')"),
    PurePosixPath("configs/text.py"),
    PurePosixPath("runs/wide"),
    python="/home/me/attest/.venv/bin/python",
    directory=PurePosixPath("/home/me/attest"),
)
CLOUD = {"bucket": "my-bucket", "project": "my-project", "zone": "us-west4-a"}

CASES: dict[str, tuple[str, Job, Options]] = {
    "slurm": ("slurm", SWEEP, Options(gpus="1", cpus=8, partition="gpu", hours=8)),
    "slurm-nodes": ("slurm", RUN, Options(gpus="h100:8", nodes=4, account="my-lab")),
    "skypilot": (
        "skypilot",
        SWEEP,
        Options(slice="v6e:2x2", bucket="my-bucket", spot=True),
    ),
    "skypilot-gpus": ("skypilot", RUN, Options(gpus="H100:8", bucket="my-bucket")),
    "xpk": ("xpk", RUN, Options(slice="2*v5e:16x16", cluster="my-cluster", **CLOUD)),
    "xpk-image": (
        "xpk",
        SWEEP,
        Options(slice="v5p:2x2x2", cluster="my-cluster", image="gcr.io/me/attest:1", **CLOUD),
    ),
    "gcloud": ("gcloud", SWEEP, Options(slice="v5e:4x4", spot=True, hours=6, **CLOUD)),
    "gcloud-slices": ("gcloud", RUN, Options(slice="2*v4:2x2x4", **CLOUD)),
}

HOSTILE = (
    "; rm -rf /tmp/attest-hostile",
    "$(touch /tmp/attest-hostile)",
    "`touch /tmp/attest-hostile`",
    'it\'s "quoted" $HOME \\ *',
    "two\nlines' && touch /tmp/attest-hostile",
    "--shard=1/3 $$ $(SHARD) %j",
    "\ttab é \u2028 \x07",
)
"""What a path, an override or an experiment's name may be."""


def launched(engine: str, job: Job, options: Options) -> Launch:
    """Returns what an engine is given for a job, its options checked as the command checks them."""
    check_options(engine, options)
    return make_launch(engine, job, options, Path(job.workdir) / "launch" / engine)
