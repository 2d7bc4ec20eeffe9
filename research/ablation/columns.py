"""The columns of the report's tables: one definition for Markdown, HTML and the terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.ablation import store
from research.ablation.evidence import WAITING, Study
from research.ablation.store import BUDGET
from research.ablation.tables import BudgetRow, Row, TuningRow
from research.ablation.wording import (
    NONE,
    bracket,
    number,
    p_text,
    short_keys,
    signed,
    span,
    value_text,
)
from research.stats import Interval


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
      title: heading.
      text: row -> what the cell says.
      value: row -> what the column is sorted by; None sorts last.
      hint: what the column means, one sentence.
      kind: "number", "text", "arm" or "interval".
      interval: row -> interval to draw in an "interval" column of the page.
      flagged: row -> whether the cell is to be noticed.
    """

    title: str
    text: Callable[[Any], str]
    value: Callable[[Any], Any]
    hint: str = ""
    kind: str = "number"
    interval: Callable[[Any], Interval] | None = None
    flagged: Callable[[Any], bool] = lambda row: False


def _place(study: Study) -> list[Column]:
    """The axes, where there are any, and the arm."""
    names = short_keys(list(study.experiment.axes))
    axes = [
        Column(
            names[key],
            lambda row, key=key: value_text(row.point[key]) if key in row.point else "all",
            lambda row, key=key: row.point.get(key),
            f"axis {key}",
        )
        for key in study.experiment.axes
    ]
    return [*axes, Column("arm", lambda row: row.arm, lambda row: row.arm, kind="arm")]


def main_columns(study: Study) -> list[Column]:
    """Returns the columns of the main table; solved and steps only with a threshold."""
    outcome = study.experiment.outcome
    reference = next(iter(study.experiment.arms))
    versus = f"difference from {reference}"
    columns = [
        *_place(study),
        Column(
            f"{outcome.split} {outcome.metric}",
            lambda row: span(row.outcome),
            lambda row: row.outcome.mean,
            "Mean over seeds with its Student-t 95 % interval.",
            "interval",
            lambda row: row.outcome,
        ),
        Column(
            "n", lambda row: str(row.outcome.n), lambda row: row.outcome.n, "Seeds in the mean."
        ),
        Column("sd", lambda row: number(row.outcome.sd), lambda row: row.outcome.sd),
        Column("median", _median, lambda row: row.median, "With its interval from six seeds on."),
        Column(
            f"Δ {reference}",
            lambda row: span(row.comparison.difference, signed) if row.comparison else "reference",
            lambda row: row.comparison.difference.mean if row.comparison else 0.0,
            f"Mean {versus} with its 95 % interval: paired over shared seeds, else Welch.",
        ),
        Column(
            "p",
            lambda row: p_text(row.p),
            lambda row: row.p,
            f"Two-sided test of no {versus}, Holm-corrected over the arms of the point.",
            flagged=lambda row: row.p < 0.05,
        ),
        Column(
            "detectable",
            lambda row: number(row.detectable),
            lambda row: row.detectable,
            f"True {versus} that this many seeds find with 80 % power (before correction).",
        ),
    ]
    return [
        *columns,
        *_solving(study),
        Column("notes", lambda row: "; ".join(row.notes), lambda _: None, kind="text"),
    ]


def _solving(study: Study) -> list[Column]:
    """Returns the columns on the outcome's threshold, none without one."""
    outcome = study.experiment.outcome
    if outcome.solved is None:
        return []
    threshold = f"{'≥' if outcome.higher_is_better else '≤'} {outcome.solved:g}"
    return [
        Column(
            "solved",
            _solved,
            lambda row: row.solved[0] / row.outcome.n if row.solved else None,
            f"Seeds with outcome {threshold}, with Wilson's 95 % interval of the fraction.",
        ),
        Column(
            "steps to solve",
            _steps,
            lambda row: row.steps,
            f"Median first step with validation {outcome.metric} {threshold}; seeds that never "
            "reach it count as later than all.",
        ),
        Column(
            "rise time",
            lambda row: number(row.rise) if math.isfinite(row.rise) else NONE,
            lambda row: row.rise,
            f"Median part of training in which validation {outcome.metric} went from 20 to 80 % of "
            "its way; 0.6 is a steady rise, near 0 a jump.",
        ),
    ]


def _median(row: Row) -> str:
    return f"{number(row.median)} {bracket(row.median_low, row.median_high)}".strip()


def _solved(row: Row) -> str:
    if row.solved is None:
        return NONE
    k, low, high = row.solved
    return f"{k} of {row.outcome.n} [{100 * low:.0f}–{100 * high:.0f} %]"


def _steps(row: Row) -> str:
    if math.isnan(row.steps):
        return NONE
    steps = number(row.steps) if math.isfinite(row.steps) else "not reached"
    return steps + (f" ({row.never} never)" if row.never else "")


TITLES = {
    "parameters": "parameters",
    "flops_per_token": "FLOPs / token",
    "state_bytes": "state bytes",
    "tokens": "tokens",
    "steps": "steps",
}


def budget_columns(study: Study) -> list[Column]:
    """Returns the columns of the budget table."""
    ablated = study.experiment.ablated
    columns = [
        Column(
            TITLES[c] + (" (ablated)" if c in ablated else ""),
            lambda row, c=c: _cost(row, c),
            lambda row, c=c: row.costs[c].value,
            flagged=lambda row, c=c: row.costs[c].flagged,
        )
        for c in BUDGET
    ]
    return [
        *_place(study),
        *columns,
        Column(
            "train seconds", lambda row: number(row.seconds), lambda row: row.seconds, "Median."
        ),
        Column(
            "implementation",
            lambda row: ", ".join(row.implementations) or NONE,
            lambda row: ", ".join(row.implementations),
            kind="text",
        ),
    ]


def _cost(row: BudgetRow, column: str) -> str:
    cost = row.costs[column]
    if cost.value is None:
        return NONE
    ratio = f" ×{cost.ratio:.2f}" if math.isfinite(cost.ratio) and cost.ratio != 1 else ""
    return f"{number(cost.value)}{ratio}{' ⚠' if cost.flagged else ''}"


def tuning_columns(study: Study) -> list[Column]:
    """Returns the columns of the tuning table."""
    outcome = study.experiment.outcome
    names = short_keys(list(study.experiment.tune))
    chosen = [
        Column(
            names[key],
            lambda row, key=key: _chosen(row, key),
            lambda row, key=key: row.tuned.get(key),
            f"Chosen value of {key}.",
            flagged=lambda row, key=key: key in row.edges or _differs(row, key),
        )
        for key in study.experiment.tune
    ]
    grid = Column(
        f"validation {outcome.metric} of each combination",
        lambda row: "; ".join(_score(names, *score) for score in row.scores) or NONE,
        lambda _: None,
        kind="text",
    )
    done = Column("runs", lambda row: f"{row.done} of {row.total}", lambda row: row.done)
    return [*_place(study), *chosen, grid, done]


def _chosen(row: TuningRow, key: str) -> str:
    if key not in row.tuned:
        return "not chosen yet"
    text = value_text(row.tuned[key])
    if _differs(row, key):
        return f"{text} ⚠ tuning chose {value_text(row.best[key])}"
    return text + (" ⚠ edge of the grid" if key in row.edges else "")


def _differs(row: TuningRow, key: str) -> bool:
    """Tuning runs that changed after the reported runs began leave these with an old choice."""
    return key in row.best and row.tuned.get(key) != row.best[key]


def _score(names: dict[str, str], tuned, mean: float, without: int) -> str:
    what = ", ".join(value_text(v) for v in tuned.values())
    return f"{what} → {number(mean)}" + (f" ({without} without a value)" if without else "")


def text_rows(columns: Sequence[Column], rows: Sequence[Any]) -> list[list[str]]:
    """Returns the cells as text."""
    return [[column.text(row) for column in columns] for row in rows]


def progress_text(counts: Mapping[str, int]) -> str:
    """Returns how far the sweep is: "160 of 176 runs finished, 1 diverged, 1 failed"."""
    total, waiting = sum(counts.values()), counts[WAITING]
    parts = [f"{total - waiting} of {total} runs finished"]
    for status in (store.DIVERGED, store.FAILED):
        if counts[status]:
            parts.append(f"{counts[status]} {status}")
    return ", ".join(parts)
