"""Renders the HTML report, one file that needs no network; `panels` prepares its content."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from research.ablation.experiment import seed_list
from research.drawing import chart
from research.drawing.templates import fill, source_hash
from research.report import panels
from research.report.cards import cards, cards_note
from research.report.columns import (
    budget_columns,
    main_columns,
    progress_text,
    results_note,
    tuning_columns,
    tuning_note,
)
from research.report.formatting import typographic, value_text
from research.report.judging.bootstrap import Bootstrap, bootstrap_columns, bootstrap_note
from research.report.judging.study import Study
from research.report.methods import methods
from research.report.summary import Summary
from research.report.tables import score_signatures
from research.runs.bucket import named

HERE = Path(__file__).parent

NOTES = {
    "frontier": (
        "One mark per arm, the mean over its seeds, which are the dashes; the dashed line joins "
        "the arms that no other beats at the same cost or less."
    ),
    "outcome": (
        "Every seed a dot, and the difference from the reference arm with the interval of the "
        "table below."
    ),
    "axes": "Every seed a dot; the line joins the means, and the band is from lowest to highest.",
    "curves": (
        "Thick: mean over seeds, as long as all of them run. Thin: each seed; × marks where one "
        "diverged."
    ),
    "slices": "Means over seeds; the band is from the lowest to the highest.",
    "steps": (
        "Each mark is a seed; the bar is the median, which counts the seeds that never get there "
        "as later than all others."
    ),
    "rates": (
        "Each mark is a tuning seed; the line joins the means, and the ring is the best rate. A "
        "flat line is an arm that forgives its rate."
    ),
}
"""{section: caption of its figures}."""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
      anchor: HTML id.
      title: heading.
      kind: macro of parts.html that renders the section.
      content: argument of that macro.
      note: paragraph below the heading, or "".
      after: paragraph at the end, or "".
    """

    anchor: str
    title: str
    kind: str
    content: Any
    note: str = ""
    after: str = ""


def render(summary: Summary, out: Path, resampled: Bootstrap | None) -> str:
    """Returns the page as HTML; links to run files are relative to `out`, the page's folder."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src '{source_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    values = {
        "policy": policy,
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "name": summary.study.name,
        "question": summary.study.experiment.question,
        "takeaway": summary.takeaway,
        "facts": _facts(summary),
        "banners": panels.banners(summary),
        "failures": panels.failures(summary),
        "arms": [
            {"name": arm, "index": i, "color": summary.colors[arm]}
            for i, arm in enumerate(summary.study.experiment.arms)
        ],
        "sections": _sections(summary, out, resampled),
    }
    return fill(HERE / "page.html", values)


def _sections(summary: Summary, out: Path, resampled: Bootstrap | None) -> list[Section]:
    study = summary.study
    sections = [
        Section("verdicts", "Claims", "cards", cards(summary), cards_note(summary)),
        _charts(summary, "outcome", "Every seed"),
        _results(summary),
        _charts(summary, "frontier", "Against cost"),
        _charts(summary, "axes", "Along the axes"),
        _charts(summary, "curves", "Learning curves"),
        _charts(summary, "slices", "Slices"),
        _charts(summary, "steps", "Steps to solve"),
        _budget(summary),
        _bootstrap(summary, resampled),
        _charts(summary, "rates", "Learning rates"),
        _tuning(summary),
        Section("arms", "What differs", "configs", panels.configs(summary), _base(study)),
        Section("runs", "Runs", "runs", panels.runs(summary, out)),
        Section("methods", "Methods", "text", typographic(methods(study))),
        Section("reproduce", "Reproduce", "reproduce", _reproduce(study)),
    ]
    return [section for section in sections if section.content]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    experiment = summary.study.experiment
    outcome = experiment.outcome
    arrow = "higher is better" if outcome.higher_is_better else "lower is better"
    at = "at the best validation step" if outcome.at == "best" else "at the last step"
    return [
        ("Outcome", f"{outcome.split} {outcome.metric} {at}, {arrow}"),
        ("Arms", f"{len(experiment.arms)}, compared with “{next(iter(experiment.arms))}”"),
        ("Seeds", f"{len(seed_list(experiment))} per arm and point"),
        ("Runs", progress_text(summary.progress)),
    ]


def _charts(summary: Summary, anchor: str, title: str) -> Section:
    drawn = [
        {"svg": Markup(chart.svg(c)), "width": round(72 * c.figure.get_figwidth())}
        for c in summary.charts
        if c.section == anchor
    ]
    return Section(anchor, title, "charts", drawn, NOTES[anchor])


def _results(summary: Summary) -> Section:
    study = summary.study
    table = panels.table(summary, main_columns(study), summary.rows, "Outcome of each arm")
    after = " ".join(
        filter(None, (results_note(study), "Press a heading to sort.", score_signatures(study)))
    )
    return Section("results", "Results", "table", table, after=after)


def _budget(summary: Summary) -> Section:
    tolerance = f"{100 * summary.study.experiment.tolerance:g} %"
    ablated = summary.study.experiment.ablated
    note = (
        f"× is the ratio to the reference arm; ⚠ marks one that differs by more than {tolerance}"
        + (f" (not {', '.join(ablated)}: that is what is ablated)" if ablated else "")
        + ". Seconds are never flagged: they are of the machine as much as of the arm."
    )
    columns = budget_columns(summary.study)
    table = panels.table(summary, columns, summary.budget, "What each arm cost")
    return Section("budget", "Budget", "table", table, after=note)


def _bootstrap(summary: Summary, resampled: Bootstrap | None) -> Section:
    anchor, title = "bootstrap", "Paired resampling"
    if resampled is None:
        return Section(anchor, title, "table", None)
    columns = bootstrap_columns(summary.study, resampled.measure)
    table = panels.table(summary, columns, resampled.pairs, "Each run against the reference's")
    return Section(anchor, title, "table", table, after=bootstrap_note(resampled))


def _tuning(summary: Summary) -> Section:
    if not summary.tuning:
        return Section("tuning", "Tuning", "table", None)
    note = tuning_note(summary.study, summary.tuning)
    columns = tuning_columns(summary.study)
    table = panels.table(summary, columns, summary.tuning, "Chosen values of each arm")
    return Section("tuning", "Tuning", "table", table, after=note)


def _base(study: Study) -> str:
    experiment = study.experiment
    common = [f"{key} = {value_text(value)}" for key, value in experiment.common.items()]
    return (
        "Resolved values at the first point of the axes, also of keys that no delta names. Base: "
        f"{', '.join([experiment.base, *common])}."
    )


def commands(study: Study) -> list[str]:
    """Returns the shell commands that reproduce the sweep and its report."""
    commit = (study.environment.get("git") or {}).get("commit")
    command = study.environment.get("command")
    lines = [f"git checkout {shlex.quote(str(commit))}"] if commit else []
    # Without a file, the experiment was built in Python and the command is some other program.
    if study.file and isinstance(command, list) and command:
        lines.append(shlex.join(map(str, command)))
    return [
        *lines,
        shlex.join(["python", "-m", "research.report", f"--workdir={named(study.workdir)}"]),
    ]


def _reproduce(study: Study) -> dict[str, Any]:
    facts = [(k, _fact(v)) for k, v in study.environment.items() if k != "command"]
    return {"commands": "\n".join(commands(study)), "environment": facts}


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {value_text(v)}" for k, v in value.items())
    return value_text(value)
