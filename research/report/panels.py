"""Prepares the content of the page's sections as plain values for the templates."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from research.report.cards import Bar, interval_css
from research.report.columns import Column, nonempty_columns
from research.report.formatting import count, number, point_text, value_text
from research.report.judging.study import WAITING
from research.report.summary import Summary
from research.runs import store
from research.stats import Summary as Sample


@dataclass(frozen=True)
class Heading:
    """Heading of a column: its text, its meaning and its CSS class."""

    title: str
    hint: str
    style: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
      text: text of the cell.
      kind: "arm" for the heading of a row, otherwise the kind of its column.
      style: CSS classes.
      value: sort key of the column; None sorts last.
      tip: tooltip, or "".
      bar: interval drawn below the text.
    """

    text: str
    kind: str
    style: str
    value: Any
    tip: str
    bar: Bar | None


@dataclass(frozen=True)
class Line:
    """A row of a table: its cells, the index of its arm and that of the arm's color."""

    cells: Sequence[Cell]
    arm: int
    color: int


@dataclass(frozen=True)
class Table:
    """A table that can be sorted by mouse and keyboard."""

    caption: str
    headings: Sequence[Heading]
    lines: Sequence[Line]


def table(summary: Summary, columns: Sequence[Column], rows: Sequence[Any], caption: str) -> Table:
    """Returns the table of a page, without empty columns and those meant only for paper."""
    arms = {arm: i for i, arm in enumerate(summary.study.experiment.arms)}
    columns = [column for column in nonempty_columns(columns, rows) if not column.on_paper]
    ranges = [
        _range(column.interval(row) for row in rows) if column.interval else None
        for column in columns
    ]
    return Table(
        caption=caption,
        headings=[Heading(c.title, c.hint, c.kind if c.kind == "number" else "") for c in columns],
        lines=[
            Line(
                [_cell(c, row, ends) for c, ends in zip(columns, ranges, strict=True)],
                arms.get(row.arm, 0),
                summary.colors.get(row.arm, 0),
            )
            for row in rows
        ],
    )


def _cell(column: Column, row: Any, ends: tuple[float, float] | None) -> Cell:
    value = column.value(row)
    if isinstance(value, float) and math.isnan(value):
        value = None
    bar = None
    if column.interval and ends:
        found = column.interval(row)
        bar = Bar(*interval_css(found.mean, found.low, found.high, ends))
    style = " ".join([column.kind, *(["flagged"] if column.flagged(row) else [])])
    return Cell(column.text(row), column.kind, style, value, column.tip(row), bar)


def _range(intervals: Iterable[Sample]) -> tuple[float, float] | None:
    """Returns the common scale of a column's intervals; very wide intervals are cut off."""
    intervals = list(intervals)
    means = [i.mean for i in intervals if math.isfinite(i.mean)]
    if not means:
        return None
    low, high = min(means), max(means)
    room = 0.3 * (high - low) or 0.05 * abs(high) or 1.0
    ends = [e for i in intervals for e in (i.low, i.high) if math.isfinite(e)] or means
    return max(min(ends), low - room) - 0.05 * room, min(max(ends), high + room) + 0.05 * room


def banners(summary: Summary) -> list[str]:
    """Returns warnings to show before the results, such as an unfinished sweep or mixed origins."""
    found = list(summary.warnings)
    if summary.progress[WAITING]:
        waiting = count(summary.progress[WAITING], "run")
        found.insert(0, f"This sweep is not finished: {waiting} still to come.")
    return found


def failures(summary: Summary) -> list[tuple[str, str, str]]:
    """Returns (run, its arm and point, last line of its traceback) for each failed run."""
    found = []
    for run, line in summary.failures:
        place = point_text(run.point)
        where = f"{run.arm}{', ' + place if place else ''}, seed {run.seed}, {run.stage}"
        found.append((run.run, where, line))
    return found


def configs(summary: Summary) -> dict[str, Any]:
    """Returns the arms and, for each config key, its values and which differ from the first."""
    experiment = summary.study.experiment
    rows = [
        (key, [("as in the base" if v is None else value_text(v), v != values[0]) for v in values])
        for key, values in summary.configs.items()
    ]
    return {"arms": [(arm, summary.colors[arm]) for arm in experiment.arms], "rows": rows}


RUN_HEADINGS = ("run", "arm", "point", "stage", "tuned", "seed", "status", "outcome", "files")


def runs(summary: Summary, out: Path) -> dict[str, Any]:
    """Returns all runs; their files are links if the runs are stored with the report."""
    study = summary.study
    rows = []
    for run in study.runs:
        folder = os.path.relpath(study.workdir / run.run, out)
        # A report outside the sweep directory may be moved without the runs: no links then.
        beside = not folder.startswith("..")
        files = [
            (name, quote(f"{folder}/{name}") if beside else "")
            for name in (store.CONFIG, store.RESULT, store.METRICS)
            if name == store.CONFIG or run.status != WAITING
        ]
        rows.append(
            {
                "run": run.run,
                "arm": run.arm,
                "color": summary.colors.get(run.arm, 0),
                "point": point_text(run.point),
                "stage": run.stage,
                "tuned": point_text(run.tuned),
                "seed": run.seed,
                "status": run.status,
                "outcome": number(summary.outcomes.get(run.run)),
                "files": files,
            }
        )
    title = f"All {count(len(rows), 'run')}, with their files"
    return {"title": title, "headings": RUN_HEADINGS, "rows": rows}
