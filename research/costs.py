"""Measures time and memory of a training step of every arm of an experiment, arms taking turns.

python -m research.costs --experiment=experiments/sequence_length.py --workdir=runs/sequence_length

Nothing is trained. The report of the same directory shows the figures, also beside its outcome.
"""

from absl import flags

from research.command_line import run
from research.runs.bucket import local_workdir

flags.DEFINE_string("experiment", None, "Experiment file: experiments/NAME.py", required=True)
flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
flags.DEFINE_integer("rounds", 9, "Turns that every arm gets.", lower_bound=1)


def main() -> None:
    """Measures all arms and writes WORKDIR/costs.json."""
    import statistics

    from research.ablation.costs import FILE, Costs, write_costs
    from research.ablation.experiment import point_name
    from research.ablation.loading import use_profile_of
    from research.ablation.sweep import prepare
    from research.ablation.timing import measure_costs
    from research.parallel.xla_flags import say_if_useless
    from research.training.records.environment import (
        describe_environment,
        enable_compilation_cache,
    )

    options = flags.FLAGS
    say_if_useless(use_profile_of(options.experiment))
    enable_compilation_cache()
    workdir = local_workdir(options.workdir, "research.costs")
    experiment = prepare(options.experiment, workdir, 1)
    costs = Costs(describe_environment(), measure_costs(experiment, options.rounds))
    workdir.mkdir(parents=True, exist_ok=True)
    write_costs(costs, workdir)
    for cost in costs.rows:
        seconds, memory = statistics.median(cost.seconds), cost.memory_bytes
        print(
            f"{cost.arm} {point_name(cost.point)}: {1e3 * seconds:.4g} ms a step, "
            f"{1e6 * seconds / cost.tokens:.4g} us a token"
            + (f", {memory / 2**20:.4g} MiB" if memory else "")
        )
    print(workdir / FILE)


if __name__ == "__main__":
    run(main)
