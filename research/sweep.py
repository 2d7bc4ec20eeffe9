"""Trains every cell of an experiment that is not finished yet.

python -m research.sweep --experiment=experiments/attention_type.py --workdir=runs/attention_type
"""

from absl import flags

from research.command_line import define_process_flags, run
from research.runs.bucket import local_workdir

define_process_flags()
flags.DEFINE_string("experiment", None, "Experiment file: experiments/NAME.py", required=True)
flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
flags.DEFINE_boolean("dry_run", False, "Shows what would be trained, and trains nothing.")
flags.DEFINE_string("shard", "1/1", "Part i/n: trains every n-th arm at a point, for n machines.")
flags.DEFINE_boolean("retry_failed", False, "Trains failed runs again.")
flags.DEFINE_string("parallel", "", "Devices of every run, such as data=4,model=2,fsdp=true.")
flags.DEFINE_string(
    "max_members", "8", "Most runs that are trained as one program; auto: as many as memory holds."
)


def main() -> int:
    """Trains the unfinished runs of an experiment; returns 1 if a run failed."""
    from research.ablation.forecast import forecast
    from research.ablation.loading import use_profile_of
    from research.ablation.populations import parse_shard
    from research.ablation.sweep import EXPERIMENT, prepare, run_sweep
    from research.ablation.tuning import extension_text
    from research.cloud.members import parse_most
    from research.parallel.processes import exit_with_peers, is_first, start
    from research.parallel.topology import LOCAL, parse_target
    from research.parallel.xla_flags import say_if_useless
    from research.report.judging.evidence import load_study
    from research.report.judging.power import power_lines
    from research.training.preemption import Preempted
    from research.training.records.environment import enable_compilation_cache

    options = flags.FLAGS
    workdir, shard = local_workdir(options.workdir, "research.sweep"), parse_shard(options.shard)
    profile = use_profile_of(options.experiment, options.parallel)
    start()
    say_if_useless(profile)
    enable_compilation_cache()
    most = parse_most(options.max_members, parse_target(LOCAL))
    if options.dry_run:
        experiment = prepare(options.experiment, workdir, most, options.parallel)
        rows = forecast(experiment, workdir, shard, most)
        if is_first():
            show_forecast(rows)
            if text := extension_text(experiment):
                print(text)
            pilot = load_study(workdir) if (workdir / EXPERIMENT).exists() else None
            print(*power_lines(experiment, pilot), sep="\n")
        return 0
    try:
        with exit_with_peers():
            counts = run_sweep(
                options.experiment,
                workdir,
                shard,
                options.retry_failed,
                most,
                options.parallel,
            )
    except Preempted as stopped:
        if is_first():
            print(f"{workdir}: {stopped}")
        return 0
    if not is_first():
        return 1 if counts["failed"] else 0
    print(", ".join(f"{number} {name}" for name, number in counts.items() if number))
    if counts["failed"]:
        print("Failed runs keep their traceback in result.json; --retry_failed trains them again.")
    print(f"python -m research.report --workdir={workdir}")
    return 1 if counts["failed"] else 0


def show_forecast(rows: list[dict]) -> None:
    """Prints the rows of `forecast` as a table with totals."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("run", "stage", "arm", "deltas"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "FLOPs/token", "state bytes", "members", "status", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        deltas = " ".join(f"{k.split('.')[-1]}={v}" for k, v in row["deltas"].items())
        table.add_row(
            *(row["run"], row["stage"], row["arm"], deltas),
            f"{row['parameters']:,}",
            f"{row['flops_per_token']:,.0f}",
            "-" if row["state_bytes"] is None else f"{row['state_bytes']:,}",
            str(row["members"]),
            row["status"],
            "-" if row["seconds"] is None else f"{row['seconds']:.1f} s",
        )
    console = Console()
    # In a file or a pager there is no terminal width to respect.
    console.print(table) if console.is_terminal else Console(width=160).print(table)
    left = [row for row in rows if row["status"] == "to do"]
    if any(row["seconds"] is None for row in rows):
        time = "not known before a step has been measured"
    else:
        time = f"about {sum(row['seconds'] for row in left) / 60:.1f} minutes without compilation"
    print(f"{len(rows)} runs, {len(left)} to do: {time}.")


if __name__ == "__main__":
    run(main)
