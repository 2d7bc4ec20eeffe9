"""Writes the report of a sweep directory: report.html, report.md, results.csv and the figures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from research.ablation.experiment import seed_list
from research.drawing import chart
from research.report import page
from research.report.cards import cards
from research.report.columns import (
    Column,
    budget_columns,
    main_columns,
    nonempty_columns,
    progress_text,
    results_note,
    text_rows,
    tuning_columns,
    tuning_note,
)
from research.report.formatting import count, point_text, value_text
from research.report.judging.bootstrap import (
    Bootstrap,
    bootstrap,
    bootstrap_columns,
    bootstrap_note,
)
from research.report.judging.evidence import load_study
from research.report.judging.study import WAITING, Study
from research.report.latex import latex
from research.report.results import RESULTS, read_results, write_results
from research.report.run_rows import results_csv
from research.report.summary import Summary, summarize
from research.report.tables import score_signatures
from research.runs import store


def write_report(
    workdir: str | Path,
    out: str | Path | None = None,
    formats: Sequence[str] = ("png",),
    paper: bool = False,
) -> Summary:
    """Reads a sweep directory, finished or not, and writes its report.

    It also writes results.json, from which `rewrite_report` can make the report again, and copies
    the decoded text of reported runs to `out`/outputs/RUN.SPLIT.hypotheses.txt; results.csv lists
    the runs.

    Args:
      workdir: the sweep directory.
      out: directory of the report; default: `workdir`.
      formats: file formats of the figures, from `research.drawing.chart.FORMATS`.
      paper: whether to write report.tex as well.

    Raises UserError if `workdir` is not a sweep directory.
    """
    workdir = Path(workdir)
    out = Path(out) if out else workdir
    study = load_study(workdir)
    summary = _write(study, out, formats, paper)
    if out.resolve() != workdir.resolve():
        _copy_outputs(study, workdir, out / "outputs")
    return summary


def rewrite_report(
    results: str | Path,
    out: str | Path | None = None,
    formats: Sequence[str] = ("png",),
    paper: bool = False,
) -> Summary:
    """Writes the report of the results.json in a folder to `out` (default: the same folder).

    Raises UserError if there is no such file.
    """
    return _write(read_results(results), Path(out) if out else Path(results), formats, paper)


def _write(study: Study, out: Path, formats: Sequence[str], paper: bool) -> Summary:
    summary = summarize(study)
    resampled = bootstrap(study)
    for drawn in summary.charts:
        for kind in formats:
            chart.write_chart(drawn, out / f"{drawn.name}.{kind}")
    store.write_text(out / "results.csv", results_csv(summary.study))
    store.write_text(out / "report.md", markdown(summary, resampled))
    store.write_text(out / "report.html", page.render(summary, out, resampled))
    if paper:
        store.write_text(out / "report.tex", latex(summary))
    write_results(study, resampled, out / RESULTS)
    return summary


def _copy_outputs(study: Study, workdir: Path, out: Path) -> None:
    """Copies decoded text, but not the references, which are under the licence of the corpus."""
    for run in study.reported:
        for path in sorted((workdir / run.run).glob("*.hypotheses.txt")):
            store.write_text(out / f"{run.run}.{path.name}", path.read_text(encoding="utf-8"))


def markdown(summary: Summary, resampled: Bootstrap | None) -> str:
    """Returns the report as Markdown; the figures are the PNG files beside it."""
    study = summary.study
    experiment, outcome = study.experiment, study.experiment.outcome
    at = "best validation step" if outcome.at == "best" else "last step"
    better = "higher" if outcome.higher_is_better else "lower"
    blocks = [
        f"# {_plain(experiment.question)}",
        f"{_plain(summary.takeaway)}",
        f"Outcome: {_plain(outcome.split)} {_plain(outcome.metric)} at the {at} ({better} is "
        f"better), {count(len(seed_list(experiment)), 'seed')}. {progress_text(summary.progress)}.",
        *_warnings(summary),
        *_claims(summary),
        "## Results",
        _table(main_columns(study), summary.rows),
        results_note(study),
        *([_plain(signed)] if (signed := score_signatures(study)) else []),
        *(f"![{_plain(c.title)}]({c.name}.png)" for c in summary.charts),
        "## Budget",
        _table(budget_columns(study), summary.budget),
    ]
    if resampled:
        table = _table(bootstrap_columns(study, resampled.measure), resampled.pairs)
        blocks += ["## Paired resampling", table, _plain(bootstrap_note(resampled))]
    if summary.tuning:
        table = _table(tuning_columns(study), summary.tuning)
        blocks += ["## Tuning", table, _plain(tuning_note(study, summary.tuning))]
    blocks += ["## What differs", _configs(summary), "## Reproduce", *_reproduce(study)]
    return "\n\n".join(blocks) + "\n"


def _warnings(summary: Summary) -> Iterator[str]:
    if summary.progress[WAITING]:
        waiting = count(summary.progress[WAITING], "run")
        yield f"**This sweep is not finished: {waiting} still to come.**"
    yield from (f"**{warning}**" for warning in summary.warnings)
    if summary.failures:
        yield "Failed runs:"
        yield "\n".join(
            f"- `{run.run}` {_plain(run.arm)} {_plain(point_text(run.point))}, seed {run.seed}: "
            f"{_plain(line)}"
            for run, line in summary.failures
        )


def _claims(summary: Summary) -> list[str]:
    if not summary.judgements:
        return []
    items = []
    for card in cards(summary):
        source = f" ({_plain(card.source)})" if card.source else ""
        lines = [
            f"- **{_plain(card.text)}**{source}",
            _plain(card.effect),
            f"**{card.verdict[0].upper()}{card.verdict[1:]}.** {_plain(card.tested)}".rstrip(),
            _plain(card.why),
            f"Ours, {_plain(card.ours)}" if card.ours else "",
            f"Published: {_plain(card.published)}" if card.published else "",
        ]
        items.append("\\\n  ".join(filter(None, lines)))
    return ["## Claims", *items]


def _configs(summary: Summary) -> str:
    body = [
        [key, *("as in the base" if v is None else value_text(v) for v in values)]
        for key, values in summary.configs.items()
    ]
    return _rows(["config key", *summary.study.experiment.arms], body)


def _reproduce(study: Study) -> Iterator[str]:
    commit = (study.environment.get("git") or {}).get("commit")
    if commit:
        yield f"Commit `{_plain(commit)}`."
    yield "\n".join(f"    {line}" for line in page.commands(study) if not line.startswith("git "))
    device, versions = (study.environment.get(k) or {} for k in ("device", "versions"))
    if device:
        kind, cores = _plain(device.get("kind")), device.get("cpu_cores")
        yield f"On {device.get('count')} {kind}, {cores} CPU cores."
    yield ", ".join(f"{_plain(k)} {_plain(v)}" for k, v in versions.items())


def _table(columns: list[Column], rows: Any) -> str:
    columns = nonempty_columns(columns, rows)
    return _rows([column.title for column in columns], text_rows(columns, rows))


def _rows(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines)


def _plain(text: Any) -> str:
    """Escapes a text for a Markdown table cell: no markup, no cell breaks, one line."""
    text = " ".join(str(text).split())
    text = text.replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;")
    return "".join("\\" + c if c in "|*_`[]" else c for c in text)
