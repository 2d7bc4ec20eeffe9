"""The tuning of each arm: chosen values, sensitivity to the learning rate, and its figure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from research import stats
from research.ablation.experiment import points
from research.ablation.measure import point_key
from research.ablation.tuning import best, keys_at_edge, scalar_metric, tuning_scores
from research.drawing.chart import Chart, arm_style, tag_artists
from research.report.arms import arm_indices
from research.report.facets import Place, arm_panels, panel_chart
from research.report.formatting import point_text, value_text
from research.report.judging.measuring import range_of, worst_value
from research.report.judging.study import WAITING, Run, Study, has_diverged

RATE = "optimizer.learning_rate"


@dataclass(frozen=True)
class TuningRow:
    """The tuned values of one arm at one point.

    Attributes:
      tuned: values that the reported runs use; before there are any, the choice of the tuning runs.
      best: choice of the tuning runs; {} until they are finished.
      scores: (combination, mean validation outcome or NaN, seeds without one) of the whole grid.
      edges: tuned keys whose best value is the smallest or largest of the extended grid.
      done, total: number of tuning cells with a result, and of all tuning cells.
      sensitivity: `learning_rate_sensitivity`, or None.
    """

    arm: str
    point: Mapping[str, Any]
    tuned: Mapping[str, Any]
    best: Mapping[str, Any]
    scores: Sequence[tuple[Mapping[str, Any], float, int]]
    edges: Sequence[str]
    done: int
    total: int
    sensitivity: float | None = None


def tuning_table(study: Study) -> list[TuningRow]:
    """Returns one row per point and arm; [] if the experiment tunes nothing."""
    outcome, rows = study.experiment.outcome, []
    if not study.experiment.tune:
        return []
    results = {r.run: r.result for r in study.runs if r.result}
    cells = [
        {"arm": r.arm, "point": r.point, "stage": r.stage, "tuned": r.tuned, "run": r.run}
        for r in study.runs
    ]
    finished = tuning_scores(outcome, cells, results)
    for point in points(study.experiment):
        for arm in study.experiment.arms:
            key = (arm, point_key(point))
            runs = [r for r in study.runs if r.stage == "tune" and r.key == key]
            groups: dict[tuple, list[Run]] = {}
            for run in runs:
                groups.setdefault(point_key(run.tuned), []).append(run)
            scores = [_tuning_score(outcome, group) for group in groups.values()]
            # Show the values that the reported runs used; until they exist, the tuning choice.
            used = [r.tuned for r in study.reported if r.key == key]
            chosen = best(finished[key]) if key in finished else {}
            tuned = used[0] if used else chosen
            rows.append(
                TuningRow(
                    arm=arm,
                    point=point,
                    tuned=tuned,
                    best=chosen,
                    scores=scores,
                    edges=keys_at_edge(finished[key]) if key in finished else [],
                    done=sum(r.status != WAITING for r in runs),
                    total=len(runs),
                    sensitivity=learning_rate_sensitivity(study, runs),
                )
            )
    return rows


def _tuning_score(outcome, runs: Sequence[Run]) -> tuple[Mapping[str, Any], float, int]:
    values = [scalar_metric(r.result, outcome.at, "validation", outcome.metric) for r in runs]
    known = [v for v in values if v is not None]
    return runs[0].tuned, stats.mean(known), len(values) - len(known)


def learning_rate_sensitivity(study: Study, runs: Sequence[Run]) -> float | None:
    """Returns how much worse the validation outcome is at a rate of the grid than at the best one.

    This is the mean over the rates of the registered grid, which all arms share, of the distance to
    the best of them: the learning rate sensitivity of Wortsman et al. 2023 ("Small-scale proxies
    for large-scale Transformer training instabilities", section 2.2), with the outcome in place of
    the loss. The value of a rate is the mean over tuning seeds, at the best of the other tuned
    values. Where Wortsman et al. put the loss at initialization for a run that diverged, the worst
    value that the metric declares is used.

    Args:
      study: the study.
      runs: all tuning runs of one arm at one point.

    Returns:
      A value of at least 0 in units of the outcome. None if fewer than two rates are tuned, if
      tuning is not finished, or if a seed has no value and the metric no worst one.
    """
    values = outcome_by_rate(study, runs)
    shared = [values.get(rate) for rate in study.experiment.tune.get(RATE, ())]
    known = [value for value in shared if value is not None and math.isfinite(value)]
    if len(known) < 2 or len(known) < len(shared):
        return None
    top = max(known) if study.experiment.outcome.higher_is_better else min(known)
    return stats.mean([abs(value - top) for value in known])


def outcome_by_rate(study: Study, runs: Sequence[Run]) -> dict[float, float]:
    """Returns {learning rate: mean validation outcome over tuning seeds} of one arm at one point.

    Of the combinations with a rate, the best counts. NaN marks a rate at which a seed is waiting,
    failed, or diverged under a metric without a worst value.
    """
    found: dict[float, dict[tuple, list[float]]] = {}
    for run in runs:
        if RATE in run.tuned:
            group = found.setdefault(run.tuned[RATE], {}).setdefault(point_key(run.tuned), [])
            group.append(_validation(study, run))
    pick = max if study.experiment.outcome.higher_is_better else min
    means = {rate: [stats.mean(v) for v in groups.values()] for rate, groups in found.items()}
    return {
        rate: pick((m for m in of if math.isfinite(m)), default=math.nan)
        for rate, of in sorted(means.items())
    }


def _validation(study: Study, run: Run) -> float:
    """Returns the validation outcome of a tuning run; NaN if there is none."""
    outcome = study.experiment.outcome
    value = scalar_metric(run.result, outcome.at, "validation", outcome.metric)
    if value is None and has_diverged(run, outcome):
        value = worst_value(range_of(study, outcome.metric), outcome.higher_is_better)
    return math.nan if value is None or math.isinf(value) else value


def learning_rate_chart(study: Study) -> Iterator[Chart]:
    """Yields the figure of the validation outcome against the tuned learning rate, if there is one.

    Each tuning seed is a dot and the line joins the means; a ring marks the best rate. A seed that
    diverged under a metric without a worst value has no dot, and its rate no mean.
    """
    rates: dict[tuple, list[Run]] = {}
    for run in study.runs:
        if run.stage == "tune" and RATE in run.tuned:
            rates.setdefault(run.key, []).append(run)
    if len({run.tuned[RATE] for runs in rates.values() for run in runs}) < 2:
        return
    known, outcome = arm_indices(study.experiment), study.experiment.outcome

    def draw(axes: Axes, point: Any, arms: Sequence[str]) -> list:
        axes.set_xscale("log")
        ends, shown = [], set()
        for arm in arms:
            runs = rates[arm, point_key(point)]
            means = {r: v for r, v in outcome_by_rate(study, runs).items() if math.isfinite(v)}
            shown |= set(means)
            ends += _rate_line(axes, study, runs, means, arm, known[arm])
        axes.minorticks_off()
        axes.set_xticks(sorted(shown), [value_text(rate) for rate in sorted(shown)], fontsize=7)
        axes.set_xlabel("learning rate")
        return ends

    def has(point: Any, arm: str) -> bool:
        runs = rates.get((arm, point_key(point)), [])
        return any(math.isfinite(v) for v in outcome_by_rate(study, runs).values())

    places: list[Place] = [(point_text(point), point) for point in points(study.experiment)]
    title = f"validation {outcome.metric} by learning rate"
    made = arm_panels(study, places, draw, has)
    yield from panel_chart(study, "learning-rates", "rates", title, made)


def _rate_line(
    axes: Axes,
    study: Study,
    runs: Sequence[Run],
    means: Mapping[float, float],
    arm: str,
    known: tuple[int, int],
) -> list[tuple[str, float]]:
    """Draws one arm's tuning seeds and means; returns its name and the height of its line end."""
    number, color = known
    style = arm_style(color)
    dots = [(run.tuned[RATE], _validation(study, run)) for run in runs]
    dots = [(rate, value) for rate, value in dots if math.isfinite(value)]
    artists = axes.plot(
        *zip(*dots, strict=True), style["marker"], color=style["color"], alpha=0.45,
        markersize=2.6, linestyle="none",
    )  # fmt: skip
    artists += axes.plot(
        list(means), list(means.values()), color=style["color"], linestyle=style["linestyle"]
    )
    pick = max if study.experiment.outcome.higher_is_better else min
    top = pick(means, key=means.__getitem__)
    artists += axes.plot(
        [top], [means[top]], "o", markersize=8, markerfacecolor="none", markeredgewidth=0.9,
        markeredgecolor=style["color"],
    )  # fmt: skip
    tag_artists(artists, number)
    return [(arm, list(means.values())[-1])]
