"""Draws the outcome per arm: every seed, differences from the reference arm, steps to solve."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from research import stats
from research.ablation.experiment import points
from research.ablation.measure import point_key
from research.drawing.chart import MUTED, PALETTE, Chart
from research.report.arms import arm_indices, row_colors
from research.report.formatting import count, point_text
from research.report.judging.items import intervals_over
from research.report.judging.measuring import measure, steps_to_threshold
from research.report.judging.study import Study
from research.report.rows import Block, Column, interval_line, seed_dots, stack_blocks
from research.report.tables import Row
from research.runs import store
from research.stats import ALPHA

MOST_LINES = 160
"""Maximum number of arm lines in a figure."""


def outcome_chart(study: Study, rows: Sequence[Row]) -> Iterator[Chart]:
    """Yields one figure: each arm's seeds and its difference from the reference arm, best first.

    With a threshold, arms are ordered by the share of seeds that solved the task, and the
    difference is in the probability of solving. Intervals are the same as in the main table.
    """
    outcome, data = study.experiment.outcome, measure(study)
    by_place = {(row.arm, point_key(row.point)): row for row in rows}
    arms = _best_first(study, rows)
    if not arms:
        return
    blocks = []
    places = points(study.experiment)[: max(1, MOST_LINES // len(arms))]
    for point in places:
        here = {arm: by_place[arm, point_key(point)] for arm in arms}
        columns = [_seeds(study, here, point, data)]
        if any(row.difference is not None for row in here.values()):
            columns.append(_differences(study, here))
        counts = {a: f"{r.solved[0]} of {r.outcome.n}" for a, r in here.items() if r.solved}
        blocks.append(Block(point_text(point), arms, counts, columns))
    reference = next(iter(study.experiment.arms))
    title = f"{outcome.split} {outcome.metric} of every seed"
    if len(blocks[0].columns) > 1:
        title += f", and difference from {reference}"
    yield Chart(
        "outcome", "outcome", title, stack_blocks(title, blocks, arm_indices(study.experiment))
    )


def _best_first(study: Study, rows: Sequence[Row]) -> list[str]:
    """Returns the arms with results, best first, in the same order for all points."""
    found: dict[str, list[tuple[float, float]]] = {}
    sign = 1 if study.experiment.outcome.higher_is_better else -1
    for row in rows:
        if row.outcome.n:
            mean = sign * row.outcome.mean
            share = row.solved[0] / row.outcome.n if row.solved else 0.0
            value = mean if math.isfinite(mean) else -math.inf
            found.setdefault(row.arm, []).append((share, value))
    keys = {a: tuple(stats.mean(v) for v in zip(*found[a], strict=True)) for a in found}
    return sorted(found, key=keys.__getitem__, reverse=True)


def _seeds(study: Study, here: Mapping[str, Row], point: Mapping[str, Any], data) -> Column:
    colors, solved = row_colors(study.experiment), study.experiment.outcome.solved
    outcome = study.experiment.outcome

    def draw(axes: Axes, arm: str, y: float) -> list:
        values = list(data.sample(arm, point).values())
        # With a threshold, seeds cluster at the two ends: the mean describes none of them.
        middle = math.nan if solved is not None or len(values) < 2 else here[arm].outcome.mean
        if y == 0:
            _solved_line(axes, solved, [v for a in here for v in data.sample(a, point).values()])
        return seed_dots(axes, values, y, colors[arm], middle)

    alone = solved is not None or all(row.outcome.n < 2 for row in here.values())
    what = "seeds" if alone else "seeds and their mean"
    return Column(what, f"{outcome.split} {outcome.metric}", draw)


def _solved_line(axes: Axes, solved: float | None, values: Sequence[float]) -> None:
    finite = [v for v in values if math.isfinite(v)]
    if solved is not None and finite and min(finite) <= solved <= max(finite):
        axes.axvline(solved, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)


def _differences(study: Study, here: Mapping[str, Row]) -> Column:
    colors, outcome = row_colors(study.experiment), study.experiment.outcome
    reference, *others = study.experiment.arms

    def draw(axes: Axes, arm: str, y: float) -> list:
        row = here[arm]
        if y == 0:
            axes.axvline(0.0, color=PALETTE[0], linewidth=0.8, zorder=1)
        if row.reference:
            return axes.plot([0.0], [y], "o", color=PALETTE[colors[arm]], markersize=4.6)
        if row.difference is None:
            return []
        return interval_line(axes, row.difference, row.low, row.high, y, colors[arm])

    level = 100 * (1 - ALPHA / max(1, len(others)))
    together = f" (95 % for {len(others)} arms together)" if len(others) > 1 else ""
    what = "probability to solve" if outcome.solved is not None else f"mean {outcome.metric}"
    over = intervals_over(study).partition(",")[0]
    label = f"{what}\n{level:.3g} % intervals over {over}{together}"
    return Column(f"difference from {reference}", label, draw)


def steps_chart(study: Study) -> Iterator[Chart]:
    """Yields one figure: the first step at which each seed solved the task."""
    outcome, arms = study.experiment.outcome, arm_indices(study.experiment)
    if outcome.solved is None:
        return
    blocks, left_out = [], set(arms)
    for point in points(study.experiment):
        first: dict[str, list[float]] = {}
        for arm in arms:
            runs = [r for r in study.reported if r.key == (arm, point_key(point))]
            ended = [r for r in runs if r.curve and r.status in (store.COMPLETED, store.DIVERGED)]
            steps = [steps_to_threshold(r, outcome) for r in ended]
            if steps:
                first[arm] = [math.inf if s is None else float(s) for s in steps]
        got = {arm: steps for arm, steps in first.items() if any(map(math.isfinite, steps))}
        if got:
            left_out -= set(got)
            blocks.append(_steps_block(point, got, row_colors(study.experiment)))
    if not blocks:
        return
    sign = "≥" if outcome.higher_is_better else "≤"
    title = f"first step with validation {outcome.metric} {sign} {outcome.solved:g}"
    if left_out:
        title += f"; no seed of {count(len(left_out), 'other arm')} got there"
    yield Chart("steps", "steps", title, stack_blocks(title, blocks, arms))


def _steps_block(
    point: Mapping[str, Any], got: Mapping[str, Sequence[float]], colors: Mapping[str, int]
) -> Block:
    ordered = sorted(got, key=lambda arm: stats.median(got[arm]))

    def draw(axes: Axes, arm: str, y: float) -> list:
        return seed_dots(axes, got[arm], y, colors[arm], stats.median(got[arm]))

    counts = {arm: f"{sum(map(math.isfinite, got[arm]))} of {len(got[arm])}" for arm in got}
    columns = [Column("seeds that got there, and the median", "step", draw)]
    return Block(point_text(point), ordered, counts, columns)
