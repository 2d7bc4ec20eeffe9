"""The HTML report: one file that needs no network. Parts of it are in `panels`."""

import os
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

from research.ablation.experiment import seed_list
from research.drawing import chart
from research.drawing.chart import Chart
from research.drawing.markup import Html, el, join
from research.report import panels
from research.report.columns import (
    budget_columns,
    main_columns,
    progress_text,
    results_note,
    tuning_columns,
    tuning_note,
)
from research.report.figures import LIMIT
from research.report.formatting import count, number, point_text, value_text
from research.report.judging.bootstrap import Bootstrap, bootstrap_columns, bootstrap_note
from research.report.judging.evidence import WAITING, Study
from research.report.summary import Summary
from research.report.tables import score_signatures
from research.runs import store

HERE = Path(__file__).parent


def render(summary: Summary, out: Path, resampled: Bootstrap | None) -> str:
    """Returns the page; links to run files are relative to `out`, the folder it is written to."""
    parts = {
        "title": join(summary.study.experiment.question),
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
        "body": join(_sections(summary, out, resampled)),
    }
    template = (HERE / "page.html").read_text(encoding="utf-8")
    # Split once, so that a "{{script}}" inside an arm's name stays what it is.
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [parts[name], rest]
    return "".join(filled)


def _sections(summary: Summary, out: Path, resampled: Bootstrap | None) -> list[Any]:
    sections = [
        ("verdicts", "Claims", panels.verdicts(summary)),
        ("results", "Results", _results(summary)),
        ("frontier", "Against cost", _charts(summary, "frontier", FRONTIER_NOTE)),
        ("axes", _axes_title(summary), _charts(summary, "axes", AXES_NOTE)),
        ("curves", "Learning curves", _charts(summary, "curves", CURVES_NOTE)),
        ("slices", "Slices", _charts(summary, "slices", SLICES_NOTE)),
        ("steps", "Steps to solve", _charts(summary, "steps", STEPS_NOTE)),
        ("budget", "Budget", _budget(summary)),
        ("bootstrap", "Paired resampling", _bootstrap(summary, resampled)),
        ("tuning", "Tuning", _tuning(summary)),
        ("arms", "What differs", _arms(summary)),
        ("runs", "Runs", _runs(summary, out)),
        ("reproduce", "Reproduce", _reproduce(summary)),
    ]
    shown = [(anchor, title, body) for anchor, title, body in sections if body]
    return [
        _header(summary),
        el("nav", [el("a", title, href=f"#{a}") for a, title, _ in shown], aria_label="Sections"),
        _legend(summary),
        el("main", [el("section", el("h2", t), body, id=a) for a, t, body in shown]),
    ]


def _header(summary: Summary) -> Html:
    experiment = summary.study.experiment
    outcome = experiment.outcome
    arrow = "higher is better" if outcome.higher_is_better else "lower is better"
    at = "at the best validation step" if outcome.at == "best" else "at the last step"
    facts = [
        ("Outcome", f"{outcome.split} {outcome.metric} {at}, {arrow}"),
        ("Arms", f"{len(experiment.arms)}, compared with “{next(iter(experiment.arms))}”"),
        ("Seeds", f"{len(seed_list(experiment))} per arm and point"),
        ("Runs", progress_text(summary.progress)),
    ]
    return el(
        "header",
        el("p", "Ablation report · ", summary.study.name, class_="kicker"),
        el("h1", experiment.question),
        el("dl", [el("div", el("dt", k), el("dd", v)) for k, v in facts], class_="facts"),
        panels.banners(summary),
    )


def _legend(summary: Summary) -> Html:
    """The arms as switches: pressing one brings it forward in every chart."""
    chips = [
        el(
            "button",
            panels.dot(i),
            arm,
            type="button",
            class_="chip",
            data_arm=i,
            aria_pressed="false",
        )
        for i, arm in enumerate(summary.study.experiment.arms)
    ]
    return el("div", chips, class_="legend", role="group", aria_label="Bring an arm forward")


FRONTIER_NOTE = (
    "One mark per arm, the mean over its seeds, which are the dashes; the dashed line joins the "
    "arms that no other beats at the same cost or less."
)
AXES_NOTE = (
    "Means over seeds, from the lowest to the highest; the dashed line is the threshold of "
    "“solved”."
)
CURVES_NOTE = (
    "Thick: mean over seeds, as long as all of them run. Thin: each seed; × marks where one "
    "diverged."
)
SLICES_NOTE = "Means over seeds, from the lowest to the highest."
STEPS_NOTE = (
    "Each mark is a seed; the bar is the median, which counts the seeds that never get there as "
    "later than all others."
)


def _axes_title(summary: Summary) -> str:
    axes = [v for v in summary.study.experiment.axes.values() if len(v) > 1]
    return "Along the axes" if axes else "Every seed"


def _charts(summary: Summary, section: str, note: str) -> Html | None:
    drawn = [c for c in summary.charts if c.section == section]
    if not drawn:
        return None
    if len(drawn) == LIMIT:
        note += f" Only the first {LIMIT} are drawn; results.csv has all numbers."
    return join([el("p", note, class_="note"), el("div", map(_figure, drawn), class_="charts")])


def _figure(drawn: Chart) -> Html:
    return el("figure", Html(chart.svg(drawn)))


def _results(summary: Summary) -> Html:
    treated = [
        f"{results_note(summary.study)} ",
        "Press a heading to sort.",
    ]
    if signed := score_signatures(summary.study):
        treated.append(f" {signed}")
    table = panels.table(summary, main_columns(summary.study), summary.rows, "Outcome of each arm")
    return join([table, el("p", treated, class_="note")])


def _budget(summary: Summary) -> Html:
    tolerance = f"{100 * summary.study.experiment.tolerance:g} %"
    ablated = summary.study.experiment.ablated
    note = (
        f"× is the ratio to the reference arm; ⚠ marks one that differs by more than {tolerance}"
        + (f" (not {', '.join(ablated)}: that is what is ablated)" if ablated else "")
        + ". Seconds are never flagged: they are of the machine as much as of the arm."
    )
    table = panels.table(
        summary, budget_columns(summary.study), summary.budget, "What each arm cost"
    )
    return join([table, el("p", note, class_="note")])


def _bootstrap(summary: Summary, resampled: Bootstrap | None) -> Html | None:
    if resampled is None:
        return None
    columns = bootstrap_columns(summary.study, resampled.measure)
    table = panels.table(summary, columns, resampled.pairs, "Each run against the reference's")
    return join([table, el("p", bootstrap_note(resampled), class_="note")])


def _tuning(summary: Summary) -> Html | None:
    if not summary.tuning:
        return None
    note = tuning_note(summary.study, summary.tuning)
    table = panels.table(
        summary, tuning_columns(summary.study), summary.tuning, "Chosen values of each arm"
    )
    return join([table, el("p", note, class_="note")])


def _arms(summary: Summary) -> Html:
    experiment = summary.study.experiment
    arms = list(experiment.arms)
    head = el(
        "tr", el("th", "config key", scope="col"), [_arm_heading(i, a) for i, a in enumerate(arms)]
    )
    body = [
        el(
            "tr",
            el("th", el("code", key), scope="row"),
            [
                el(
                    "td",
                    el("code", value_text(value) if value is not None else "as in the base"),
                    class_="differs" if value != values[0] else None,
                )
                for value in values
            ],
        )
        for key, values in summary.configs.items()
    ]
    note = [
        "Resolved values at the first point of the axes, also of keys that no delta names. Base: ",
        el("code", experiment.base),
        [
            [", ", el("code", f"{key} = {value_text(value)}")]
            for key, value in experiment.common.items()
        ],
        ".",
    ]
    table = el(
        "table",
        el("caption", "Config of each arm", class_="hidden"),
        el("thead", head),
        el("tbody", body),
    )
    return join([panels.scroller(table, "Config of each arm"), el("p", note, class_="note")])


def _arm_heading(index: int, arm: str) -> Html:
    return el("th", panels.dot(index), arm, scope="col", class_="arm")


def _runs(summary: Summary, out: Path) -> Html:
    study = summary.study
    index = {arm: i for i, arm in enumerate(study.experiment.arms)}
    head = ["run", "arm", "point", "stage", "tuned", "seed", "status", "outcome", "files"]
    body = []
    for run in study.runs:
        value = summary.outcomes.get(run.run)
        folder = os.path.relpath(study.workdir / run.run, out)
        # A report that is kept apart from its runs travels without them: names, but no links.
        beside = not folder.startswith("..")
        files = [
            (el("a", name, href=quote(f"{folder}/{name}")) if beside else name, " ")
            for name in (store.CONFIG, store.RESULT, store.METRICS)
            if name == store.CONFIG or run.status != WAITING
        ]
        cells = [
            el("td", el("code", run.run)),
            el("td", panels.dot(index.get(run.arm, 0)), run.arm, class_="arm"),
            el("td", point_text(run.point)),
            el("td", run.stage),
            el("td", point_text(run.tuned)),
            el("td", run.seed, class_="number"),
            el("td", run.status, class_=f"status {run.status}"),
            el("td", number(value), class_="number"),
            el("td", files),
        ]
        body.append(el("tr", cells))
    table = el(
        "table",
        el("caption", "All runs", class_="hidden"),
        el("thead", el("tr", [el("th", h, scope="col") for h in head])),
        el("tbody", body),
    )
    return el(
        "details",
        el("summary", f"All {count(len(study.runs), 'run')}, with their files"),
        panels.scroller(table, "All runs"),
    )


def commands(study: Study) -> list[str]:
    """Returns the shell lines that repeat the sweep and its report."""
    commit = (study.environment.get("git") or {}).get("commit")
    command = study.environment.get("command")
    lines = [f"git checkout {shlex.quote(str(commit))}"] if commit else []
    if isinstance(command, list) and command:
        lines.append(shlex.join(map(str, command)))
    return [*lines, shlex.join(["python", "-m", "research.report", f"--workdir={study.workdir}"])]


def _reproduce(summary: Summary) -> Html:
    facts = [(k, v) for k, v in summary.study.environment.items() if k != "command"]
    return join(
        [
            el("pre", el("code", "\n".join(commands(summary.study))), tabindex="0"),
            el("dl", [_fact(key, value) for key, value in facts], class_="environment"),
        ]
    )


def _fact(key: str, value: Any) -> Html:
    if isinstance(value, dict):
        text = ", ".join(f"{k} {value_text(v)}" for k, v in value.items())
    else:
        text = value_text(value)
    return el("div", el("dt", key), el("dd", text))
