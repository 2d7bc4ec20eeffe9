"""Trains the runs that a config file describes, or resumes them where they were stopped.

python -m research.train --config=configs/recall.py --workdir=runs/recall
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from research.command_line import define_config_flag, define_process_flags, run
from research.configuration import apply_deltas
from research.errors import UserError
from research.runs.bucket import named, open_workdir

define_config_flag()
define_process_flags()
flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
flags.DEFINE_string("profile", "", "start:stop traces these steps into WORKDIR/profile.")


def main() -> None:
    """Trains all members of the config's population and prints their results."""
    from research.parallel.processes import exit_with_peers, is_first, start
    from research.parallel.xla_flags import say_if_useless, use_profile
    from research.training.loop import train_population
    from research.training.preemption import Preempted
    from research.training.profiling import parse_steps
    from research.training.records.environment import enable_compilation_cache
    from research.training.validation import check_config

    config: ConfigDict = flags.FLAGS.config
    use_profile(config.parallel.xla_flags)
    start()
    say_if_useless(config.parallel.xla_flags)
    enable_compilation_cache()
    workdir = open_workdir(flags.FLAGS.workdir)
    configs = members_of(config)
    profile = parse_steps(flags.FLAGS.profile, config.train.steps)
    runs = directories(workdir, configs)
    try:
        with exit_with_peers():
            check_config(configs[0], len(configs))
            results = train_population(configs, runs, workdir, workdir.name, profile)
    except Preempted as stopped:
        if is_first():
            print(f"{named(workdir)}: {stopped}")
        return
    if not is_first():
        return
    for path, result in zip(runs, results, strict=True):
        print(f"{named(path)}: {summary(result)}")


def members_of(config: ConfigDict) -> list[ConfigDict]:
    """Returns one config per member: `members` seeds from `seed` on. Raises UserError."""
    # Imported here because it imports jax, which --help does not need.
    from research.training.schema import resolve

    config = resolve(config)
    if config.seed + config.members > 2**32:
        raise UserError(f"seed={config.seed}: with members={config.members} it passes 2^32 - 1.")
    return [
        apply_deltas(config, {"seed": config.seed + i, "members": 1}) for i in range(config.members)
    ]


def directories(workdir: Path, configs: Sequence[ConfigDict]) -> list[Path]:
    """Returns the directories of the members of a population: workdir itself if there is one.

    Those of several are workdir/seed-N; earlier versions named them by their run ids.
    """
    from research.training.schema import run_id

    if len(configs) == 1:
        return [workdir]
    before = [workdir / run_id(config) for config in configs]
    if all(path.is_dir() for path in before):
        return before
    return [workdir / f"seed-{config.seed}" for config in configs]


def summary(result: dict) -> str:
    """Returns the scalar metrics of a result on one line, best checkpoint first."""
    parts = [f"{result['status']}, best at step {result['best_step']:,}"]
    for split, metrics in result["best"].items():
        scalars = {k: v for k, v in metrics.items() if isinstance(v, float)}
        parts.append(f"{split} " + " ".join(f"{k} {v:.4f}" for k, v in scalars.items()))
    timing = result["timing"]
    return "; ".join(parts) + f"; {timing['train_seconds']:.1f} s of training"


if __name__ == "__main__":
    run(main)
