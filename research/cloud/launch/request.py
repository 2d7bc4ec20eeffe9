"""The launch request: a run, or a sweep in shards, and the options of the engines."""

import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any

from absl import flags
from ml_collections import config_flags

from research.configuration import flatten
from research.errors import UserError

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Job:
    """A command of this project to launch, once or in shards.

    Attributes:
      module: "research.train" or "research.sweep".
      arguments: its flags except --workdir and --shard.
      source: the config or experiment file.
      workdir: directory of the run or sweep, as given on the command line.
      shards: number of shards of the sweep; 1 for a run.
      python: path of the Python interpreter on this machine.
      directory: directory of the project on this machine.
    """

    module: str
    arguments: tuple[str, ...]
    source: PurePath
    workdir: PurePath
    shards: int = 1
    python: str = sys.executable
    directory: PurePath = PurePath(".")

    @property
    def name(self) -> str:
        """The name of the experiment or config file, followed by the workdir's if it differs."""
        stem, folder = self.source.stem, self.workdir.name
        return stem if folder in ("", stem) else f"{stem}-{folder}"


def _option(default: Any, help: str, pattern: str = "", words: str = "", least: int = 0) -> Any:
    """Returns an option field; values must match `pattern`, which `words` describes in errors."""
    metadata = {"help": help, "pattern": pattern, "words": words, "least": least}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Options of the engines; each engine reads some of them (see engines.py)."""

    slice: str = _option("", "TPU slice of one shard, such as v5e:4x4 or 2*v5e:16x16.")
    gpus: str = _option(
        "",
        "GPUs of one machine: H100:8 (skypilot), 8 or h100:8 (slurm).",
        r"[A-Za-z0-9][A-Za-z0-9_.-]*(:[1-9][0-9]*)?",
        "GPUs of a machine, for example H100:8",
    )
    nodes: int = _option(1, "Machines of one run (slurm).", least=1)
    cpus: int = _option(0, "Cores of a process (slurm); 0: the cluster's default.")
    hours: int = _option(24, "Hours after which a machine saves, stops and is released.", least=1)
    spot: bool = _option(False, "Spot machines, cheaper but preemptible (skypilot, gcloud).")
    partition: str = _option(
        "",
        "Slurm partition.",
        r"[A-Za-z0-9_][A-Za-z0-9_.,+-]*",
        "a Slurm partition, for example gpu",
    )
    account: str = _option("", "Slurm account.", r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", "a Slurm account")
    project: str = _option(
        "",
        "Google Cloud project (xpk, gcloud).",
        r"[a-z][a-z0-9.:-]{4,61}[a-z0-9]",
        "a Google Cloud project, for example my-project",
    )
    zone: str = _option(
        "",
        "Google Cloud zone (xpk, gcloud, skypilot).",
        r"[a-z]+-[a-z]+[0-9]+-[a-z]",
        "a zone, for example us-west4-a",
    )
    cluster: str = _option(
        "",
        "GKE cluster (xpk).",
        r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?",
        "a GKE cluster's name, for example my-cluster",
    )
    bucket: str = _option(
        "",
        "Cloud Storage bucket of the workdir (skypilot, xpk, gcloud).",
        r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]",
        "a bucket's name, for example my-bucket",
    )
    image: str = _option(
        "",
        "Container image that holds this project (xpk).",
        r"[A-Za-z0-9][A-Za-z0-9._/:@-]*",
        "a container image, for example gcr.io/me/attest:1",
    )

    def given(self) -> dict[str, object]:
        """Returns the options that differ from their defaults."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def check(self) -> None:
        """Raises UserError for a value that is too small or does not match its pattern."""
        for f in fields(self):
            value, rule = getattr(self, f.name), f.metadata
            if rule["pattern"] and value and not re.fullmatch(rule["pattern"], value):
                raise UserError(f"--{f.name}={value!r} must be {rule['words']}.")
            if isinstance(value, int) and value < rule["least"]:
                raise UserError(f"--{f.name}={value} must be at least {rule['least']}.")


def define_options() -> None:
    """Defines a flag for each option."""
    define: Any = {str: flags.DEFINE_string, int: flags.DEFINE_integer, bool: flags.DEFINE_boolean}
    for f in fields(Options):
        define[type(f.default)](f.name, f.default, f.metadata["help"])


def parse_options(given: flags.FlagValues, takes: Collection[str]) -> Options:
    """Returns the options on a command line, for an engine that reads the options `takes`.

    If neither a slice nor GPUs are given, the slice is the config's `parallel.slice`.
    """
    values = {f.name: getattr(given, f.name) for f in fields(Options)}
    if not given["slice"].present and "config" in given and "slice" in takes and not given.gpus:
        values["slice"] = given.config.get("parallel", {}).get("slice", "")
    return Options(**values)


def parse_job(given: flags.FlagValues, argv: Sequence[str], default_shards: int) -> Job:
    """Returns the job that a command line describes, after loading and checking its file.

    Raises UserError.
    """
    config = "config" in given and given["config"].present
    if bool(config) == bool(given.experiment):
        raise UserError(
            "give either --config=configs/NAME.py, for a run, or --experiment=experiments/NAME.py, "
            "for a sweep."
        )
    workdir, here = Path(given.workdir), Path.cwd()
    if given.experiment:
        pairs = _pairs(given.experiment)
        if given.shards > pairs:
            raise UserError(
                f"--shards={given.shards}: a sweep is cut between its arms and points, and "
                f"{given.experiment} has {pairs}."
            )
        arguments = (f"--experiment={given.experiment}",)
        arguments += ("--retry_failed",) if given.retry_failed else ()
        shards = given.shards or min(pairs, default_shards)
        source = Path(given.experiment)
        return Job("research.sweep", arguments, source, workdir, shards, directory=here)
    # The value of --config as typed, including an argument after the file's colon.
    file = [value for name, value in _words(argv) if name == "config"][-1]
    if given.shards > 1 or given.retry_failed:
        flag = "--retry_failed" if given.retry_failed else f"--shards={given.shards}"
        raise UserError(f"{flag} is for sweeps; --config={file} is one run.")
    path = config_flags.get_config_filename(given["config"])
    arguments = (f"--config={file}", *overrides(given, argv))
    return Job("research.train", arguments, Path(path), workdir, directory=here)


def _pairs(path: str) -> int:
    from research.ablation.experiment import points
    from research.ablation.loading import load_experiment

    experiment = load_experiment(path)
    return len(points(experiment)) * len(experiment.arms)


def _words(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (flag, value) for the words that look like flags, written with "=" or a space."""
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        match = re.fullmatch(r"--?([^=]+)(?:=(.*))?", word, re.DOTALL)
        if match:
            yield match[1], after if match[2] is None else match[2]


def overrides(given: flags.FlagValues, argv: Sequence[str]) -> tuple[str, ...]:
    """Returns the config overrides as they were typed, each as one word.

    Raises UserError if an override was set in another way, which would not be passed on.
    """
    known = flatten(given.config)
    words, keys = [], set()
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        match = _OVERRIDE.fullmatch(word)
        if match and match[2] in known:
            no, key, value = match.groups()
            keys.add(key)
            if value is None and not isinstance(known[key], bool):
                value = after
            words.append(f"--{no or ''}config.{key}" + ("" if value is None else f"={value}"))
    missing = set(config_flags.get_override_values(given["config"])) - keys
    if missing:
        raise UserError(
            f"config key {min(missing)!r} is overridden in a way that cannot be passed on; write "
            f"--config.{min(missing)}=VALUE."
        )
    return tuple(words)
