"""From the flags of the command to a job and its options."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from research.cloud.launch.job import Job, Options
from research.configuration import flatten
from research.errors import UserError

_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)


def job_of(given: flags.FlagValues, argv: Sequence[str], default_shards: int) -> Job:
    """Returns the job of a command line, its config or experiment loaded and checked.

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
    if given.shards > 1 or given.retry_failed:
        flag = "--retry_failed" if given.retry_failed else f"--shards={given.shards}"
        raise UserError(f"{flag} is of sweeps; --config={_config_word(argv)} is one run.")
    path = config_flags.get_config_filename(given["config"])
    arguments = (f"--config={_config_word(argv)}", *overrides(given, argv))
    return Job("research.train", arguments, Path(path), workdir, directory=here)


def _pairs(path: str) -> int:
    from research.ablation.experiment import points
    from research.ablation.loading import load_experiment

    experiment = load_experiment(path)
    return len(points(experiment)) * len(experiment.arms)


def _config_word(argv: Sequence[str]) -> str:
    """Returns what --config was given, an argument of the file included."""
    found = [value for name, value in _words(argv) if name == "config"]
    return found[-1]


def _words(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields (flag, value) of the words that look like flags, written with = or a space."""
    for word, after in zip(argv, [*argv[1:], ""], strict=True):
        match = re.fullmatch(r"--?([^=]+)(?:=(.*))?", word, re.DOTALL)
        if match:
            yield match[1], after if match[2] is None else match[2]


def overrides(given: flags.FlagValues, argv: Sequence[str]) -> tuple[str, ...]:
    """Returns the overrides of the config as they were typed, each as one word.

    Raises UserError when some were given in another way, which the other command would not see.
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


def options_of(given: flags.FlagValues, takes: Collection[str]) -> Options:
    """Returns the options of a command line, for an engine that takes those.

    The slice is the config's `parallel.slice` where neither a slice nor GPUs were given.
    """
    values = {f.name: getattr(given, f.name) for f in fields(Options)}
    if given.slice is None:
        suggests = "config" in given and "slice" in takes and not given.gpus
        values["slice"] = given.config.get("parallel", {}).get("slice", "") if suggests else ""
    return Options(**values)
