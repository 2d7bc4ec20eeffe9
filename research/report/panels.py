"""Parts of the HTML report: verdict cards, sortable tables, small interval drawings."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from research.drawing.chart import PALETTE
from research.drawing.markup import Html, el, join
from research.report.columns import Column, filled
from research.report.formatting import (
    NONE,
    bracket,
    count,
    number,
    point_text,
    span,
    value_text,
)
from research.report.judging.evidence import WAITING
from research.report.judging.judgements import (
    CANNOT_TELL,
    OPEN,
    REFUTED,
    SUPPORTED,
    UNTESTED,
    Check,
    Judgement,
)
from research.report.summary import Summary
from research.stats import Summary as Sample

SIGNS = {SUPPORTED: "✓", REFUTED: "✕", OPEN: "?", CANNOT_TELL: "∅", UNTESTED: "i"}
UNSEEN = (
    " The experiment names no threshold at which the task is solved: a failure that none of these "
    "seeds showed is in no interval."
)
CLASSES = {verdict: verdict.replace(" ", "-") for verdict in SIGNS}


def dot(index: int) -> Html:
    """The coloured dot that stands for an arm."""
    style = f"--c: var(--arm-{index % len(PALETTE)})"
    return el("span", class_="dot", style=style, aria_hidden="true")


def banners(summary: Summary) -> list[Html]:
    """What a reader must know before the numbers: an unfinished sweep, failures, mixed origins."""
    found = []
    if summary.progress[WAITING]:
        waiting = count(summary.progress[WAITING], "run")
        found.append(
            el("p", f"This sweep is not finished: {waiting} still to come.", class_="banner")
        )
    if summary.failures:
        lines = [
            el("li", el("code", run.run), f" {_where(run)}: ", el("code", line))
            for run, line in summary.failures
        ]
        title = f"{count(len(summary.failures), 'run')} failed with an exception"
        found.append(el("details", el("summary", title), el("ul", lines), class_="banner bad"))
    found += [el("p", warning, class_="banner") for warning in summary.warnings]
    return found


def _where(run: Any) -> str:
    place = point_text(run.point)
    return f"{run.arm}{', ' + place if place else ''}, seed {run.seed}, {run.stage}"


def verdicts(summary: Summary) -> Html | None:
    """The claims as cards."""
    if not summary.judgements:
        return None
    tally = {v: sum(j.verdict == v for j in summary.judgements) for v in SIGNS}
    said = ", ".join(f"{n} {verdict}" for verdict, n in tally.items() if n)
    cards = [_card(summary, judgement) for judgement in summary.judgements]
    added = len(summary.study.experiment.looks) - 1
    note = (
        f"{said}. A claim is supported when its interval lies wholly on the claimed side, refuted "
        "when wholly on the other, open when it includes the border. Of claims that these runs "
        "could not have decided it says “cannot tell” and why. Intervals are over seeds, on these "
        "test data; the chance of a false verdict is at most 5 % over all claims together (Holm), "
        "for those not marked as exploratory."
    )
    if summary.study.experiment.outcome.solved is None:
        note += UNSEEN
    if added > 0:
        times = "once" if added == 1 else f"{added} times"
        note += f" Seeds were added {times}, for which levels are divided by {added + 1}."
    return join([el("p", note, class_="note"), el("div", cards, class_="cards")])


def _card(summary: Summary, judgement: Judgement) -> Html:
    return el(
        "article",
        el(
            "p",
            el("span", SIGNS[judgement.verdict], aria_hidden="true"),
            judgement.verdict,
            class_="verdict",
        ),
        el("h3", judgement.claim.text),
        el("p", judgement.claim.source, class_="source") if judgement.claim.source else None,
        el("p", judgement.effect, class_="effect") if judgement.effect else None,
        _check_plot(judgement.checks),
        el("p", judgement.tested, class_="source") if judgement.tested else None,
        el("p", judgement.why, class_="source") if judgement.why else None,
        _published(summary, judgement),
        class_=f"card {CLASSES[judgement.verdict]}",
    )


def _published(summary: Summary, judgement: Judgement) -> Html | None:
    figures = judgement.claim.published
    if figures is None or figures == {} or figures == "":
        return None
    if not isinstance(figures, dict):
        return el("p", f"Published: {value_text(figures)}", class_="source")
    arms = list(summary.study.experiment.arms)
    body = [
        el(
            "tr",
            el("th", dot(arms.index(label)) if label in arms else None, label, scope="row"),
            el("td", value_text(figure), class_="number"),
            el(
                "td",
                span(judgement.ours[label]) if label in judgement.ours else NONE,
                class_="number",
            ),
        )
        for label, figure in figures.items()
    ]
    head = el("tr", [el("th", h, scope="col") for h in ("", "published", "ours")])
    return el("table", el("thead", head), el("tbody", body), class_="published")


def _check_plot(checks: Sequence[Check]) -> Html | None:
    """Every interval of a claim against the region it claims (shaded)."""
    drawn = [c for c in checks if math.isfinite(c.low + c.high)]
    if not drawn:
        return None
    ends = [v for c in drawn for v in (c.low, c.high)]
    ends += [v for c in drawn for v in (c.quantity.low, c.quantity.high) if math.isfinite(v)]
    low, high = min(ends), max(ends)
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    low, high = low - pad, high + pad
    rows = []
    for check in drawn[:12]:
        q = check.quantity
        left, right = max(q.low, low), min(q.high, high)
        region = el(
            "span",
            class_="region",
            style=f"left:{_at(left, low, high)};right:{_at(right, high, low)}",
        )
        label = el("span", q.label, class_="where") if q.label else None
        mean = q.estimate.estimate if q.estimate else math.nan
        bar = el("span", region, _whisker(mean, check.low, check.high, low, high), class_="track")
        title = f"{q.label or q.what}: {number(mean)} {bracket(check.low, check.high)}, "
        title += check.verdict
        rows.append(el("li", label, bar, title=title, class_=CLASSES[check.verdict]))
    more = len(drawn) - len(rows)
    spacer = el("span", class_="where") if any(c.quantity.label for c in drawn) else None
    ends = el("span", el("span", number(low + pad)), el("span", number(high - pad)), class_="ends")
    scale = el("li", spacer, ends)
    rest = el("li", f"and {more} more", class_="more") if more > 0 else None
    return el("ul", rows, scale, rest, class_="checks")


def _at(value: float, low: float, high: float) -> str:
    return f"{100 * (value - low) / (high - low):.2f}%"


def _whisker(mean: float, start: float, end: float, low: float, high: float) -> list[Html]:
    """A line from start to end and a dot at the mean, on a track from low to high."""
    parts = []
    if math.isfinite(start + end):
        left, right = max(start, low), min(end, high)
        parts.append(
            el(
                "i",
                class_="line",
                style=f"left:{_at(left, low, high)};right:{_at(right, high, low)}",
            )
        )
    if math.isfinite(mean):
        parts.append(el("i", class_="mean", style=f"left:{_at(mean, low, high)}"))
    return parts


def scroller(table: Html, name: str) -> Html:
    """A table scrolls inside its own box, which the keyboard can reach."""
    return el("div", table, class_="scroller", tabindex="0", role="region", aria_label=name)


def table(summary: Summary, columns: Sequence[Column], rows: Sequence[Any], caption: str) -> Html:
    """A table that sorts by click and keyboard (the headings are buttons)."""
    arms = {arm: i for i, arm in enumerate(summary.study.experiment.arms)}
    columns = filled(columns, rows)
    head = [
        el(
            "th",
            el("button", column.title, type="button", title=column.hint or None),
            scope="col",
            aria_sort="none",
            class_="number" if column.kind == "number" else None,
        )
        for column in columns
    ]
    ranges = [
        _range(column.interval(row) for row in rows) if column.interval else None
        for column in columns
    ]
    body = []
    for row in rows:
        cells = [_cell(c, row, arms, r) for c, r in zip(columns, ranges, strict=True)]
        body.append(el("tr", cells, data_arm=arms.get(row.arm, 0)))
    element = el(
        "table",
        el("caption", caption, class_="hidden"),
        el("thead", el("tr", head)),
        el("tbody", body),
        class_="sortable",
    )
    return scroller(element, caption)


def _cell(column: Column, row: Any, arms: dict[str, int], ends: tuple[float, float] | None) -> Html:
    value = column.value(row)
    if isinstance(value, float) and math.isnan(value):
        value = None
    classes = " ".join([column.kind, *(["flagged"] if column.flagged(row) else [])])
    content: list[Any] = [column.text(row)]
    if column.kind == "arm":
        content.insert(0, dot(arms.get(row.arm, 0)))
    if column.interval and ends:
        color = f"--c: var(--arm-{arms.get(row.arm, 0) % len(PALETTE)})"
        found = column.interval(row)
        line = _whisker(found.mean, found.low, found.high, *ends)
        content.append(el("span", line, class_="track", style=color))
    name = "th" if column.kind == "arm" else "td"
    scope = "row" if column.kind == "arm" else None
    tip = column.tip(row) or None
    return el(name, content, class_=classes, data_value=value, scope=scope, title=tip)


def _range(intervals: Iterable[Sample]) -> tuple[float, float] | None:
    """The common scale of a column: the means decide, a very wide range is cut off."""
    intervals = list(intervals)
    means = [i.mean for i in intervals if math.isfinite(i.mean)]
    if not means:
        return None
    low, high = min(means), max(means)
    room = 0.3 * (high - low) or 0.05 * abs(high) or 1.0
    ends = [e for i in intervals for e in (i.low, i.high) if math.isfinite(e)] or means
    return max(min(ends), low - room) - 0.05 * room, min(max(ends), high + room) + 0.05 * room
