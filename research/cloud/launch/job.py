"""What is launched, where its machines come from, and what an engine makes of that."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePath

from research.errors import UserError

Command = tuple[str, ...]
"""A program and its arguments, never a line for a shell."""

MOUNT = "/mnt/attest"
"""Where a rented machine mounts the bucket."""


@dataclass(frozen=True)
class Job:
    """A command of this project, once or in shards.

    Attributes:
      module: "research.train" or "research.sweep".
      arguments: its flags except --workdir and --shard.
      source: the config or experiment file.
      workdir: the directory of the run or sweep, as it was given.
      shards: into how many parts the sweep is cut; 1 for a run.
      python: interpreter on this machine.
      directory: of the project, on this machine.
    """

    module: str
    arguments: Command
    source: PurePath
    workdir: PurePath
    shards: int = 1
    python: str = sys.executable
    directory: PurePath = PurePath(".")

    @property
    def name(self) -> str:
        """The experiment's or config's name, with the workdir's where that is another."""
        stem, folder = self.source.stem, self.workdir.name
        return stem if folder in ("", stem) else f"{stem}-{folder}"

    def command(
        self, shard: str = "", *, python: str = "", workdir: str = "", distributed: bool = False
    ) -> Command:
        """Returns the command of a shard as one process runs it.

        Args:
          shard: the word that names it, as `shard_flag` returns; "" for a run.
          python, workdir: instead of those of this machine.
          distributed: whether it is one of several processes.
        """
        return (
            *(python or self.python, "-m", self.module, *self.arguments),
            f"--workdir={workdir or self.workdir}",
            *((shard,) if shard else ()),
            *(("--distributed",) if distributed else ()),
        )

    def shard_flag(self, shard: int) -> str:
        """Returns the flag of a shard, counted from 1; "" where there are no shards."""
        return f"--shard={shard}/{self.shards}" if self.shards > 1 else ""


@dataclass(frozen=True)
class Options:
    """What the engines can be told; each takes some of it (see engines.py).

    Attributes:
      slice: TPU slice of one shard, for example "v5e:4x4"; "" for none.
      gpus: of one machine, "H100:8" or "8"; "" for none.
      nodes: machines of one run.
      cpus: cores of a process; 0 leaves it to the cluster.
      hours: after which a machine saves, stops and is given back.
      spot: whether machines may be taken away again, at a lower price.
      partition, account: of a Slurm cluster.
      project, zone, cluster: of Google Cloud.
      bucket: that holds the workdir.
      image: container image with this project and what it needs.
    """

    slice: str = ""
    gpus: str = ""
    nodes: int = 1
    cpus: int = 0
    hours: int = 24
    spot: bool = False
    partition: str = ""
    account: str = ""
    project: str = ""
    zone: str = ""
    cluster: str = ""
    bucket: str = ""
    image: str = ""

    def given(self) -> dict[str, object]:
        """Returns the options that differ from their defaults."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }


@dataclass(frozen=True)
class Launch:
    """What an engine makes of a job.

    Attributes:
      files: {name: text}, to be written into the launch directory.
      submit: starts it.
      once: has to be run once before, for all jobs; --submit leaves it out.
      watch: shows how it is doing.
      fetch: brings its results into the workdir.
      teardown: stops it and gives everything back.
      notes: what one has to know, a line each.
    """

    files: Mapping[str, str]
    submit: tuple[Command, ...]
    once: tuple[Command, ...] = ()
    watch: tuple[Command, ...] = ()
    fetch: tuple[Command, ...] = ()
    teardown: tuple[Command, ...] = ()
    notes: tuple[str, ...] = ()


def check_travels(job: Job) -> None:
    """Raises UserError for a source file that a copy of this directory would not have."""
    inside = not job.source.is_absolute() and ".." not in job.source.parts
    if not inside:
        raise UserError(
            f"{str(job.source)!r} must be a path inside of the current directory: that is what the "
            "rented machines get a copy of."
        )


def launch_directory(workdir: PurePath, engine: str) -> Path:
    """Returns where an engine's files are."""
    return Path(workdir) / "launch" / engine
