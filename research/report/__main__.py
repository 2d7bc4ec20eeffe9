"""Writes the report of a sweep: python -m research.report --workdir=DIR [--out=DIR].

DIR is what `python -m research.sweep` wrote; the sweep may still be running. With --results=DIR,
makes the report again from the results.json of an earlier one, without the runs.
"""

from pathlib import Path

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from research import command_line
from research.drawing.chart import FORMATS
from research.errors import UserError, check_name
from research.report.columns import difference_text, progress_text
from research.report.formatting import mean_and_range, p_text, point_text
from research.report.judging.judgements import OPEN, REFUTED, SUPPORTED
from research.report.summary import Summary
from research.report.tables import EQUAL
from research.report.write import rewrite_report, write_report
from research.runs.bucket import named, open_workdir

COLORS = {SUPPORTED: "green", REFUTED: "red", OPEN: "yellow"}


def main() -> None:
    """Writes the report of a sweep and prints its outcome."""
    workdir, results = flags.FLAGS.workdir, flags.FLAGS.results
    if bool(workdir) == bool(results):
        raise UserError(
            "--workdir is missing: the directory that research.sweep wrote. Or --results, the "
            "directory of an earlier report."
            if not workdir
            else "--workdir and --results are two sources of one report; give one of them."
        )
    workdir = workdir and open_workdir(workdir)
    out = Path(flags.FLAGS.out or workdir or results)
    kinds = _kinds(flags.FLAGS.formats or ("png,pdf" if flags.FLAGS.latex else "png"))
    write = write_report if workdir else rewrite_report
    summary = write(workdir or results, out, kinds, flags.FLAGS.latex)
    console = Console()
    show(summary, console)
    names = ["report.html", "report.md", "results.json", "results.csv"]
    names += ["report.tex"] if flags.FLAGS.latex else []
    # One path per line, never wrapped, so that paths can be clicked and copied.
    console.print(f"{progress_text(summary.progress)}; {len(summary.charts)} figures", markup=False)
    for name in names:
        console.print(named(out / name), markup=False, soft_wrap=True, highlight=False)


def _kinds(text: str) -> list[str]:
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    for kind in kinds:
        check_name("--formats", kind, FORMATS)
    return kinds


def show(summary: Summary, console: Console) -> None:
    """Prints the outcome of each arm and the verdicts; names are never interpreted as markup."""
    outcome = summary.study.experiment.outcome
    console.print(Text(summary.study.experiment.question, style="bold"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("point", "arm", f"{outcome.split} {outcome.metric}", "difference", "p"):
        table.add_column(Text(name), no_wrap=name != "arm", overflow="fold")
    for row in summary.rows:
        cells = (point_text(row.point), row.arm, mean_and_range(row.outcome), difference_text(row))
        cells += (p_text(row.p),)
        table.add_row(*map(Text, cells))
    console.print(table)
    for row in summary.rows:
        notes = [note for note in row.notes if note != EQUAL]
        if notes:
            place = ", ".join(part for part in (point_text(row.point), row.arm) if part)
            console.print(Text(f"{place}: {'; '.join(notes)}", style="yellow"))
    console.print()
    verdicts = Table(box=None, pad_edge=False, show_header=False)
    for judgement in summary.judgements:
        style = COLORS.get(judgement.verdict, "dim")
        said = Text.assemble((judgement.claim.text, "bold"), "\n", (judgement.reason, "dim"))
        verdicts.add_row(Text(judgement.verdict, style=style), said)
    console.print(verdicts)
    for run, line in summary.failures:
        console.print(Text(f"failed {run.run} ({run.arm}, seed {run.seed}): {line}", style="red"))


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "Directory that research.sweep wrote.")
    flags.DEFINE_string("results", None, "Directory of a report, to make it again without runs.")
    flags.DEFINE_string(
        "formats",
        "",
        "Files of the figures: png, svg, pdf. Default: png; with --latex: png,pdf.",
    )
    flags.DEFINE_boolean("latex", False, "Writes report.tex, too: methods and tables for a paper.")
    flags.DEFINE_string("out", None, "Directory of the report; default: where it is made from.")


if __name__ == "__main__":
    define_flags()
    command_line.run(main)
