"""Column definitions of the report's tables, shared by Markdown, HTML, LaTeX and the terminal."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research import stats
from research.ablation.costs import Cost
from research.ablation.experiment import tune_seed_list
from research.report.formatting import (
    NONE,
    bracket,
    count,
    mean_and_range,
    number,
    p_text,
    point_text,
    short_keys,
    signed,
    value_text,
)
from research.report.judging.items import intervals_over
from research.report.judging.study import WAITING, Study
from research.report.tables import BudgetRow, Row
from research.report.tuning import RATE, TuningRow
from research.runs import store
from research.runs.store import BUDGET
from research.stats import ALPHA, Summary


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      title: heading.
      text: row -> text of the cell.
      value: row -> sort key; None sorts last.
      hint: meaning of the column, one sentence.
      kind: "number", "text", "arm" or "interval".
      interval: row -> mean and extremes to draw in an "interval" column of the page.
      tip: row -> tooltip of the cell, or "".
      flagged: row -> whether to highlight the cell.
      on_paper: whether the column is left out of the page, because a tooltip there shows it.
    """

    title: str
    text: Callable[[Any], str]
    value: Callable[[Any], Any]
    hint: str = ""
    kind: str = "number"
    interval: Callable[[Any], Summary] | None = None
    tip: Callable[[Any], str] = lambda row: ""
    flagged: Callable[[Any], bool] = lambda row: False
    on_paper: bool = False


def _place(study: Study) -> list[Column]:
    """Returns the columns of the axes, if any, and of the arm."""
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


def results_note(study: Study) -> str:
    """Returns a note on the numbers of the main table and on its intervals."""
    return (
        "Means over seeds, with the lowest and the highest. Intervals of differences are over "
        f"{intervals_over(study)}, and hold for all arms of a point together; p values are "
        "Holm-corrected likewise. A diverged seed has not solved the task and counts as the worst "
        "value that its metric has. A failed run (an exception) says nothing of its arm: it is "
        "left out, and no verdict is passed on the others. A verdict that an arm is worse, or "
        "cannot do something, needs its validation curve to be flat in the last quarter of "
        "training, unless the claim is of these steps only."
    )


def main_columns(study: Study) -> list[Column]:
    """Returns the columns of the main table; with a threshold, also those on solving the task."""
    outcome = study.experiment.outcome
    reference, *others = study.experiment.arms
    solving = outcome.solved is not None
    what = "probability to solve" if solving else "mean"
    level = 100 * (1 - ALPHA / max(1, len(others)))
    correction = (
        f", simultaneous over {len(others)} arms: {level:.3g} % each" if len(others) > 1 else ""
    )
    exact = "exact" if solving else "Welch"
    return [
        *_place(study),
        *(_solving(study)[:1]),
        Column(
            f"{outcome.split} {outcome.metric}",
            lambda row: mean_and_range(row.outcome),
            lambda row: row.outcome.mean,
            "Mean over seeds, and the lowest and highest seed; hover for the standard deviation.",
            "interval",
            lambda row: row.outcome,
            tip=lambda row: f"sd {number(row.outcome.sd)} over {count(row.outcome.n, 'seed')}",
        ),
        Column(
            f"Δ {'solve ' if solving else ''}{reference}",
            difference_text,
            lambda row: 0.0 if row.reference else row.difference,
            f"Difference of the {what} from {reference} with its 95 % interval ({exact}, over "
            f"{intervals_over(study)}{correction}).",
        ),
        Column(
            "p",
            lambda row: p_text(row.p),
            lambda row: row.p,
            "Two-sided test of no difference, Holm-corrected over the arms of the point; hover "
            "over a dash for why there is none.",
            tip=lambda row: row.obstacle,
            flagged=lambda row: row.p < ALPHA,
        ),
        *(_solving(study)[1:]),
        Column("notes", lambda row: "; ".join(row.notes), lambda _: None, kind="text"),
        Column(
            "not compared because",
            lambda row: row.obstacle,
            lambda _: None,
            "",
            "text",
            on_paper=True,
        ),
    ]


def difference_text(row: Row) -> str:
    """Returns the difference from the reference arm as text, with its interval."""
    if row.reference:
        return "reference"
    if row.difference is None:
        return NONE
    return f"{signed(row.difference)} {bracket(row.low, row.high, signed)}".strip()


def _solving(study: Study) -> list[Column]:
    """Returns the columns on solving the task; [] if the outcome has no threshold."""
    outcome = study.experiment.outcome
    if outcome.solved is None:
        return []
    threshold = f"{'≥' if outcome.higher_is_better else '≤'} {outcome.solved:g}"
    return [
        Column(
            "solved",
            _solved,
            lambda row: row.solved[0] / row.outcome.n if row.solved else None,
            f"Seeds with outcome {threshold}, with the exact 95 % interval of the probability "
            "(Clopper-Pearson).",
        ),
        Column(
            "when solved",
            lambda row: number(row.when_solved),
            lambda row: row.when_solved,
            f"Mean {outcome.metric} of the seeds that solved the task.",
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
            f"its way to {outcome.solved:g}, over seeds that got there; 0.6 is a steady rise, near "
            "0 a jump.",
        ),
    ]


def _solved(row: Row) -> str:
    if row.solved is None:
        return NONE
    k, low, high = row.solved
    return f"{k} of {row.outcome.n} [{100 * low:.0f}–{100 * high:.0f} %]"


def _steps(row: Row) -> str:
    if math.isnan(row.steps):
        return NONE
    if row.never == row.outcome.n:
        return "never"
    steps = number(row.steps) if math.isfinite(row.steps) else NONE
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
            "ms / step",
            lambda row: _milliseconds(row.step),
            lambda row: stats.median(row.step.seconds) if row.step else None,
            "Median over rounds in which all arms took turns, with the fastest and slowest round.",
        ),
        Column(
            "MiB / step",
            lambda row: number(row.step.memory_bytes / 2**20) if _has_memory(row) else "",
            lambda row: row.step.memory_bytes if _has_memory(row) else None,
            "Memory of the compiled training step of one run, by the compiler's analysis.",
        ),
        Column(
            "implementation",
            lambda row: ", ".join(row.implementations) or NONE,
            lambda row: ", ".join(row.implementations),
            kind="text",
        ),
    ]


def _has_memory(row: BudgetRow) -> bool:
    return row.step is not None and row.step.memory_bytes is not None


def _milliseconds(step: Cost | None) -> str:
    if step is None:
        return ""
    low, middle, high = (1e3 * f(step.seconds) for f in (min, stats.median, max))
    return f"{number(middle)} ({number(low)} to {number(high)})"


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
    sensitivity = Column(
        "rate sensitivity",
        lambda row: NONE if row.sensitivity is None else number(row.sensitivity),
        lambda row: row.sensitivity,
        f"Mean over the learning rates of the shared grid of how much worse {outcome.metric} is "
        "than at the best of them (Wortsman et al. 2023).",
    )
    several = len(study.experiment.tune.get(RATE, ())) > 1
    return [*_place(study), *chosen, *([sensitivity] if several else []), grid, done]


TUNING_LIMIT = (
    " Tests and intervals of means and shares leave room for what other tuning seeds would have "
    "chosen (two standard deviations); those of slices, of steps to a threshold and of rise times "
    "do not. Nor does any for a rate that the grid does not show to be better: where all of it "
    "fails, equal arms are told apart too often (benchmarks/tuning.py)."
)
ONE_TUNING_SEED = (
    " One tuning seed does not tell what others would have chosen, and no interval leaves room for "
    "it: equal arms are told apart in up to a half of all cases (benchmarks/tuning.py)."
)


def tuning_note(study: Study, rows: Sequence[TuningRow]) -> str:
    """Returns a note on how values were tuned, and on the limits of that."""
    experiment = study.experiment
    text = (
        f"Every arm got the same grid, {count(len(tune_seed_list(experiment)), 'tuning seed')} each"
    )
    if experiment.tune_extend:
        text += (
            ", continued on a side where its best value lay at the edge (by at most "
            f"{experiment.tune_extend} values)"
        )
    text += "; the best on validation was then trained on fresh seeds."
    at_edge = [
        f"{row.arm}{f' at {point_text(row.point)}' if row.point else ''}"
        for row in rows
        if row.edges
    ]
    if at_edge:
        text += (
            " A best value at the edge of its grid says that a better one may lie outside. So it "
            f"is here, for {len(at_edge)} of {len(rows)}: {'; '.join(at_edge)}."
        )
    few = len(tune_seed_list(experiment)) < 2
    return text + (ONE_TUNING_SEED if few else TUNING_LIMIT)


def _chosen(row: TuningRow, key: str) -> str:
    if key not in row.tuned:
        return "not chosen yet"
    text = value_text(row.tuned[key])
    if _differs(row, key):
        return f"{text} ⚠ tuning chose {value_text(row.best[key])}"
    return text + (" ⚠ edge of the grid" if key in row.edges else "")


def _differs(row: TuningRow, key: str) -> bool:
    """Returns whether the reported runs use another value than tuning chooses now.

    This happens if tuning runs changed after the reported runs began.
    """
    return key in row.best and row.tuned.get(key) != row.best[key]


def _score(names: dict[str, str], tuned, mean: float, without: int) -> str:
    what = ", ".join(value_text(v) for v in tuned.values())
    return f"{what} → {number(mean)}" + (f" ({without} without a value)" if without else "")


def nonempty_columns(columns: Sequence[Column], rows: Sequence[Any]) -> list[Column]:
    """Returns the columns that are not empty in every row; all columns if there are no rows."""
    return [column for column in columns if any(column.text(row) for row in rows) or not rows]


def text_rows(columns: Sequence[Column], rows: Sequence[Any]) -> list[list[str]]:
    """Returns the texts of all cells, row by row."""
    return [[column.text(row) for column in columns] for row in rows]


def progress_text(counts: Mapping[str, int]) -> str:
    """Returns the progress of the sweep: "160 of 176 runs finished, 1 diverged, 1 failed"."""
    total, waiting = sum(counts.values()), counts[WAITING]
    parts = [f"{total - waiting} of {total} runs finished"]
    for status in (store.DIVERGED, store.FAILED):
        if counts[status]:
            parts.append(f"{counts[status]} {status}")
    return ", ".join(parts)
