"""Measures one quantity for every reported run of a study, and reads it off curves where needed."""

import math
from collections.abc import Mapping
from typing import Any

from research.ablation.claims import RISE, SLICE, STEPS, higher_is_better
from research.ablation.costs import MEMORY, SECONDS
from research.ablation.experiment import Outcome, points, seed_list
from research.ablation.measure import (
    COSTS,
    STOPWATCH,
    TIMES,
    TURNS,
    VALUES,
    Measure,
    Point,
    Progress,
    point_key,
)
from research.ablation.tuning import choice_deviations
from research.report.judging.curves import progress, rise
from research.report.judging.study import WAITING, Run, Study, finite_number, is_nan, metric_value
from research.runs import store
from research.stats import ItemErrors

RISE_BETWEEN = 0.2, 0.8
"""Fractions of the rise between which the rise time is measured."""


def measure(study: Study, metric: str = "", better: str = "") -> Measure:
    """Measures one quantity for every reported run; `metric` is as in `research.ablation.claims`.

    `better` ("higher" or "lower") overrides the declared direction of the metric.
    """
    outcome, runs = study.experiment.outcome, study.reported
    named = bool(metric)
    metric = metric or outcome.metric
    higher = higher_is_better(metric, outcome, better, study.experiment.directions)
    if metric in (f"cost/{SECONDS}", f"cost/{MEMORY}"):
        return _measured_cost(study, metric, higher)
    axis_points = points(study.experiment)
    labels = slice_labels(study, metric)
    ends = range_of(study, metric)
    worst = worst_value(ends, higher)
    if labels:
        expanded = [{**p, SLICE: label} for p in axis_points for label in labels[point_key(p)]]
        values = _sliced(runs, outcome, metric, labels, worst)
        absent = {
            (arm, point_key({**p, SLICE: label})): text
            for p in axis_points
            for arm in study.experiment.arms
            if (text := _missing(study, arm, p))
            for label in labels[point_key(p)]
        }
        going = _progress(study, metric, higher)
        return Measure(metric, values, expanded, higher, ends, missing=absent, progress=going)
    group, _, column = metric.partition("/")
    kind = VALUES
    if metric == STEPS:
        kind, values = TIMES, [_steps_value(run, study) for run in runs]
    elif metric == RISE:
        values = [rise_time(run, study.experiment.outcome) for run in runs]
    elif column and group in ("budget", "timing"):
        kind = COSTS if group == "budget" else STOPWATCH
        values = [finite_number((run.result.get(group) or {}).get(column)) for run in runs]
    else:
        values = [_value(run, metric_value(run, outcome, metric), worst) for run in runs]
    grouped = _grouped(runs, values, [run.key for run in runs])
    absent = {
        (arm, point_key(p)): text
        for p in axis_points
        for arm in study.experiment.arms
        if (text := _missing(study, arm, p) or _without_curve(study, arm, p, metric))
    }
    return Measure(
        metric,
        grouped,
        axis_points,
        higher,
        ends,
        kind,
        solved=None if named else outcome.solved,
        chance=outcome.chance if metric == outcome.metric else None,
        missing=absent,
        items=study.items.get(metric, ItemErrors()) if kind == VALUES else ItemErrors(),
        choice=_choice(study, metric, named) if kind == VALUES and metric != RISE else {},
        progress=_progress(study, metric, higher) if kind == VALUES else {},
    )


def _measured_cost(study: Study, metric: str, higher: bool | None) -> Measure:
    """Measures what `research.costs` did: seconds per round, or the memory of a step."""
    timed = metric == f"cost/{SECONDS}"
    values: dict[tuple[str, Point], dict[int, float]] = {}
    for row in study.costs.rows:
        found = row.seconds if timed else () if row.memory_bytes is None else (row.memory_bytes,)
        if found:
            values[row.arm, point_key(row.point)] = dict(enumerate(map(float, found)))
    axis_points = points(study.experiment)
    absent = {
        (arm, point_key(p)): f"research.costs has not measured {arm}"
        for p in axis_points
        for arm in study.experiment.arms
        if (arm, point_key(p)) not in values
    }
    kind = TURNS if timed else COSTS
    return Measure(metric, values, axis_points, higher, kind=kind, missing=absent)


def _progress(study: Study, metric: str, higher: bool | None) -> dict[tuple[str, Point], Progress]:
    """Returns the late progress of each arm at each point; {} for a metric without direction."""
    found = {}
    for point in points(study.experiment) if higher is not None else ():
        place = point_key(point)
        # Diverged runs are left out: they were not trained to the end.
        curves = {
            arm: {
                r.seed: r.curve
                for r in study.reported
                if r.key == (arm, place) and r.status == store.COMPLETED
            }
            for arm in study.experiment.arms
        }
        ends = progress(curves, metric, bool(higher))
        found |= {(arm, place): end for arm, end in ends.items()}
    return found


def _choice(study: Study, metric: str, named: bool) -> dict[tuple[str, Point], float]:
    """Returns the selection noise of tuning, estimated from validation of the tuning runs."""
    cells = [
        {"arm": r.arm, "point": r.point, "stage": r.stage, "tuned": r.tuned, "run": r.run}
        for r in study.runs
    ]
    results = {r.run: r.result for r in study.runs if r.result}
    return choice_deviations(study.experiment.outcome, cells, results, metric if named else "")


def _missing(study: Study, arm: str, point: Mapping[str, Any]) -> str:
    """Returns a text on the planned seeds of an arm without a result; "" if all have one."""
    planned = len(seed_list(study.experiment))
    runs = [r for r in study.reported if r.key == (arm, point_key(point))]
    failed = sum(r.status == store.FAILED for r in runs)
    waiting = planned - len(runs) + sum(r.status == WAITING for r in runs)
    said = []
    if failed:
        said.append(f"{failed} of {planned} seeds of {arm} failed with an exception")
    if waiting > 0:
        said.append(f"{waiting} of {planned} seeds of {arm} are not finished")
    return " and ".join(said)


def _without_curve(study: Study, arm: str, point: Mapping[str, Any], metric: str) -> str:
    """Returns why seeds lack a metric that is derived from their curves; "" if none does."""
    if metric not in (STEPS, RISE):
        return ""
    runs = [r for r in study.reported if r.key == (arm, point_key(point))]
    if not all(r.curve for r in runs):
        return f"the learning curves of {arm} were not kept"
    if metric == STEPS:
        return ""
    # Averaging only over the seeds that solve the task would misrepresent the arm.
    never = sum(rise_time(r, study.experiment.outcome) is None for r in runs)
    return f"{never} of {len(runs)} seeds of {arm} never solve the task" if never else ""


def range_of(study: Study, metric: str) -> tuple[float, float]:
    """Returns the lowest and the highest possible value of a metric, sliced or not."""
    declared = study.experiment.ranges
    low, high = declared.get(metric) or declared.get(metric.partition("_by_")[0]) or (None, None)
    return -math.inf if low is None else low, math.inf if high is None else high


def worst_value(ends: tuple[float, float], higher: bool | None) -> float:
    """Returns the worse end of a range, which diverged seeds count as; NaN without a direction."""
    return math.nan if higher is None else ends[0] if higher else ends[1]


def _value(run: Run, own: Any, worst: float) -> float | None:
    """Returns the value of a run: the worst value if it diverged, None without a result."""
    if run.status == store.DIVERGED or is_nan(run, own):
        return worst
    return finite_number(own) if run.status == store.COMPLETED else None


def slice_labels(study: Study, metric: str) -> dict[Point, list[str]]:
    """Returns {point: slice labels} of a sliced metric; {} for a scalar metric.

    Contains the labels of all arms: first those of the run with the most labels, in its order, then
    any others.
    """
    found: dict[Point, list[list[str]]] = {point_key(p): [] for p in points(study.experiment)}
    for run in study.reported:
        found.setdefault(point_key(run.point), []).append(_own_labels(run, metric))
    labels = {
        point: list(dict.fromkeys(x for own in sorted(lists, key=len, reverse=True) for x in own))
        for point, lists in found.items()
    }
    return labels if any(labels.values()) else {}


def _own_labels(run: Run, metric: str) -> list[str]:
    return [str(label) for label in (run.result.get("slices") or {}).get(metric) or ()]


def sliced_metrics(study: Study) -> list[str]:
    """Returns the names of the sliced metrics, in the order in which the runs list them."""
    return list(dict.fromkeys(m for run in study.reported for m in run.result.get("slices") or {}))


def _sliced(runs, outcome, metric, labels, worst) -> dict:
    merged: dict[tuple[str, Point], dict[int, float]] = {}
    for label in dict.fromkeys(x for found in labels.values() for x in found):
        # Arms may have different slices, such as heads: look up each label in the run's own list.
        known = [_own_labels(r, metric) or labels[point_key(r.point)] for r in runs]
        places = [(r, k.index(label)) for r, k in zip(runs, known, strict=True) if label in k]
        have = [run for run, _ in places]
        values = [_value(r, _item(metric_value(r, outcome, metric), i), worst) for r, i in places]
        keys = [(run.arm, point_key({**run.point, SLICE: label})) for run in have]
        merged |= _grouped(have, values, keys)
    return merged


def _item(values: Any, index: int) -> Any:
    return values[index] if isinstance(values, list) and index < len(values) else None


def _grouped(runs, values, keys) -> dict[tuple[str, Point], dict[int, float]]:
    groups: dict[tuple[str, Point], dict[int, float]] = {}
    for run, value, key in zip(runs, values, keys, strict=True):
        if value is not None:
            groups.setdefault(key, {})[run.seed] = value
    return groups


def steps_to_threshold(run: Run, outcome: Outcome) -> int | None:
    """Returns the first evaluated step whose validation outcome reached `solved`, or None."""
    for row in run.curve:
        value = finite_number(row.get(f"validation/{outcome.metric}"))
        if value is not None and outcome.reached(value):
            return int(row["step"])
    return None


def rise_time(run: Run, outcome: Outcome) -> float | None:
    """Returns the rise time of the validation outcome to `solved`, as a fraction of training.

    Defined as in signal processing: the steps between the first crossings of 20 and 80 % of the way
    from the first evaluation to the threshold, divided by all steps; values between evaluations are
    interpolated linearly. The threshold is used instead of the final value, because otherwise a
    model that learns nothing would have a rise time too. Returns None without a threshold, for an
    unfinished run, and for a run that started beyond the threshold or never reached it.
    """
    if run.status != store.COMPLETED or outcome.solved is None:
        return None
    logged = [
        (row["step"], finite_number(row.get(f"validation/{outcome.metric}"))) for row in run.curve
    ]
    curve = [(step, value) for step, value in logged if value is not None]
    if not curve or outcome.reached(curve[0][1]):
        return None
    return rise(curve, outcome.solved, RISE_BETWEEN)


def _steps_value(run: Run, study: Study) -> float | None:
    """Returns the first step at the threshold; infinity if the run ended without reaching it."""
    if run.status not in (store.COMPLETED, store.DIVERGED) or not run.curve:
        return None
    first = steps_to_threshold(run, study.experiment.outcome)
    return math.inf if first is None else float(first)
