"""What a sweep left on disk, as one value: the experiment, its runs, and measures of them.

Reads a sweep directory (see `research.ablation.store`) at any moment of the sweep, finished or not.

Seeds without a number are never dropped in silence:
  diverged  the seed counts as the worst value known for it: the worst of the validation values it
            logged itself and of all completed runs at the same point. That is defined without
            knowing the range of the metric, and never flatters the arm.
  failed    the run raised an exception. That says nothing of the arm, so the seed has no value; it
            is counted and its error is shown.
  waiting   there is no result yet.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.ablation import store
from research.ablation.cells import read_cells
from research.ablation.claims import RISE, SLICE, STEPS, higher_is_better
from research.ablation.experiment import (
    Experiment,
    Outcome,
    experiment_from_json,
    points,
    tuning_grid,
)
from research.ablation.measure import Measure, Point, point_key
from research.configuration import completed
from research.errors import UserError

WAITING = "waiting"
"""Status of a cell that has no result yet; the others are those of `store`."""

RISE_BETWEEN = 0.2, 0.8
"""The parts of its way that a rise is measured between."""


@dataclass(frozen=True)
class Run:
    """One cell of the sweep and what its run left.

    Attributes:
      run: run id, the name of its directory.
      arm, point, stage, tuned, seed: as in `experiment.Cell`.
      status: "completed", "diverged", "failed" or "waiting".
      result: result.json, {} while waiting.
      curve: rows of metrics.jsonl; read for the report stage only.
      config: config.json, {} when absent.
      environment: environment.json of the run, {} when absent.
    """

    run: str
    arm: str
    point: Mapping[str, Any]
    stage: str
    tuned: Mapping[str, Any]
    seed: int
    status: str
    result: Mapping[str, Any]
    curve: Sequence[Mapping[str, Any]] = field(repr=False)
    config: Mapping[str, Any] = field(repr=False)
    environment: Mapping[str, Any] = field(repr=False)

    @property
    def key(self) -> tuple[str, Point]:
        """The group the run belongs to."""
        return self.arm, point_key(self.point)


@dataclass(frozen=True)
class Study:
    """A sweep directory, read.

    Attributes:
      name: file stem of the experiment.
      file: path of the experiment file.
      workdir: the directory.
      experiment: the ablation.
      runs: one per cell written so far: to tune first, then to report, in the order of points.
      planned: number of cells of the whole sweep, also those not yet written.
      environment: environment.json of the sweep.
    """

    name: str
    file: str
    workdir: Path
    experiment: Experiment
    runs: Sequence[Run]
    planned: int
    environment: Mapping[str, Any]

    @property
    def reported(self) -> list[Run]:
        """Runs of the report stage."""
        return [run for run in self.runs if run.stage == "report"]


def load_study(workdir: str | Path) -> Study:
    """Reads a sweep directory. Raises UserError when it is none, or a file in it is damaged."""
    workdir = Path(workdir)
    plain = _read(workdir / "experiment.json")
    if plain is None:
        what = "there is no such directory" if not workdir.is_dir() else "it has no experiment.json"
        raise UserError(
            f"--workdir={str(workdir)!r} is not a sweep directory: {what}. `python -m "
            "research.sweep --experiment=experiments/NAME.py --workdir=DIR` makes one."
        )
    try:
        experiment = experiment_from_json(plain)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{workdir / 'experiment.json'} is no experiment: {error!r}.") from None
    cells = _cells(workdir, experiment)
    runs: dict[str, tuple] = {}
    for cell in cells:
        # Two cells may share a run: it is read once.
        run = cell["run"]
        if run not in runs or (cell["stage"] == "report" and not runs[run][1]):
            runs[run] = _read_run(workdir / run, cell["stage"] == "report")
    grid = len(tuning_grid(experiment)) * len(experiment.tune_seeds) if experiment.tune else 0
    per_arm = grid + len(experiment.seeds)
    return Study(
        name=str(plain.get("name") or workdir.name),
        file=str(plain.get("file") or ""),
        workdir=workdir,
        experiment=experiment,
        runs=[_run(cell, *runs[cell["run"]]) for cell in cells],
        planned=max(len(cells), per_arm * len(experiment.arms) * len(points(experiment))),
        environment=_read(workdir / "environment.json") or {},
    )


def _cells(workdir: Path, experiment: Experiment) -> list[dict]:
    """Returns the cells known so far that are the experiment's: to tune first, then to report."""
    pairs = [(arm, point_key(point)) for point in points(experiment) for arm in experiment.arms]
    place = {pair: i for i, pair in enumerate(pairs)}
    known = [(place.get((c["arm"], point_key(c["point"]))), c) for c in read_cells(workdir)]
    found = [(c["stage"] != "tune", at, c) for at, c in known if at is not None]
    return [c for _, _, c in sorted(found, key=lambda row: row[:2])]


def _read(path: Path) -> Any:
    try:
        return store.read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def _read_run(path: Path, with_curve: bool) -> tuple:
    result = _read(path / store.RESULT)
    curve = store.read_metrics(path) if with_curve else []
    return result, curve, _read(path / store.CONFIG), _read(path / store.ENVIRONMENT)


def _run(cell: Mapping, result: Any, curve: list, config: Any, environment: Any) -> Run:
    return Run(
        run=cell["run"],
        arm=cell["arm"],
        point=cell["point"],
        stage=cell["stage"],
        tuned=cell["tuned"],
        seed=cell["seed"],
        status=result["status"] if result else WAITING,
        result=result or {},
        curve=curve,
        config=completed(config or {}),
        environment=environment or {},
    )


def metric_value(run: Run, outcome: Outcome, metric: str) -> Any:
    """Returns a metric at the outcome's place in result.json: number, list, NaN, None if absent."""
    values = (run.result.get(outcome.at) or {}).get(outcome.split) or {}
    # JSON has no NaN: the store writes null, which is something else than not being there.
    return math.nan if metric in values and values[metric] is None else values.get(metric)


def measure(study: Study, metric: str = "", better: str = "") -> Measure:
    """Returns one quantity of every reported run; `metric` as in `research.ablation.claims`."""
    outcome, runs = study.experiment.outcome, study.reported
    metric = metric or outcome.metric
    higher = higher_is_better(metric, outcome, better, study.experiment.directions)
    axis_points = points(study.experiment)
    labels = slice_labels(study, metric)
    if labels:
        expanded = [{**p, SLICE: label} for p in axis_points for label in labels[point_key(p)]]
        return Measure(metric, _sliced(runs, outcome, metric, labels, higher), expanded, higher)
    group, _, column = metric.partition("/")
    if metric == STEPS:
        values = [_steps_value(run, study) for run in runs]
    elif metric == RISE:
        values = [rise_time(run, study.experiment.outcome) for run in runs]
    elif column and group in ("budget", "timing"):
        values = [_number((run.result.get(group) or {}).get(column)) for run in runs]
    else:
        own = [metric_value(run, outcome, metric) for run in runs]
        logged = [[row.get(f"validation/{metric}") for row in run.curve] for run in runs]
        values = _with_worst(runs, own, logged, higher)
    return Measure(metric, _grouped(runs, values, [run.key for run in runs]), axis_points, higher)


def slice_labels(study: Study, metric: str) -> dict[Point, list[str]]:
    """Returns {point: labels} of a sliced metric, {} for a scalar one.

    The labels of all arms: those of the run that has most of them, then what only others have.
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
    """Returns the names of the sliced metrics, in the order the runs list them."""
    return list(dict.fromkeys(m for run in study.reported for m in run.result.get("slices") or {}))


def _sliced(runs, outcome, metric, labels, higher) -> dict:
    merged: dict[tuple[str, Point], dict[int, float]] = {}
    for label in dict.fromkeys(x for found in labels.values() for x in found):
        # Arms may have other slices, as of heads: each has its own place for a label, or none.
        known = [_own_labels(r, metric) or labels[point_key(r.point)] for r in runs]
        places = [(r, k.index(label)) for r, k in zip(runs, known, strict=True) if label in k]
        have = [run for run, _ in places]
        own = [_item(metric_value(r, outcome, metric), i) for r, i in places]
        logged = [[_item(row.get(f"validation/{metric}"), i) for row in r.curve] for r, i in places]
        keys = [(run.arm, point_key({**run.point, SLICE: label})) for run in have]
        merged |= _grouped(have, _with_worst(have, own, logged, higher), keys)
    return merged


def _item(values: Any, index: int) -> Any:
    return values[index] if isinstance(values, list) and index < len(values) else None


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def has_diverged(run: Run, outcome: Outcome) -> bool:
    """Returns whether the run counts as diverged: it says so, or its outcome is NaN."""
    return run.status == store.DIVERGED or _is_nan(run, metric_value(run, outcome, outcome.metric))


def _is_nan(run: Run, value: Any) -> bool:
    return run.status == store.COMPLETED and isinstance(value, float) and math.isnan(value)


def _with_worst(runs, own, logged, higher) -> list[float | None]:
    """Returns the runs' own values, those of diverged runs replaced as the module says."""
    worst = min if higher else max
    values = [
        _number(v) if r.status == store.COMPLETED else None for r, v in zip(runs, own, strict=True)
    ]
    filled = list(values)
    for i, run in enumerate(runs):
        if higher is None or not (run.status == store.DIVERGED or _is_nan(run, own[i])):
            continue
        point = point_key(run.point)
        known = [v for r, v in zip(runs, values, strict=True) if point_key(r.point) == point]
        known += [_number(v) for v in logged[i]]
        finite = [v for v in known if v is not None]
        filled[i] = worst(finite) if finite else None
    return filled


def _grouped(runs, values, keys) -> dict[tuple[str, Point], dict[int, float]]:
    groups: dict[tuple[str, Point], dict[int, float]] = {}
    for run, value, key in zip(runs, values, keys, strict=True):
        if value is not None:
            groups.setdefault(key, {})[run.seed] = value
    return groups


def steps_to_threshold(run: Run, outcome: Outcome) -> int | None:
    """Returns the first evaluated step whose validation outcome reached `solved`, or None."""
    for row in run.curve:
        value = _number(row.get(f"validation/{outcome.metric}"))
        if value is not None and reached(value, outcome):
            return int(row["step"])
    return None


def rise_time(run: Run, outcome: Outcome) -> float | None:
    """Returns the part of training in which the validation outcome rose, or None.

    The rise time of signal processing, from 20 to 80 % of the way between the outcome at the first
    and at the last evaluation: the steps from where it first passed the one to where it first
    passed the other, over all steps. Between evaluations it is taken to be linear. None for a run
    that is unfinished, has fewer than two evaluations, or ended where it began.
    """
    if run.status != store.COMPLETED:
        return None
    logged = [(row["step"], _number(row.get(f"validation/{outcome.metric}"))) for row in run.curve]
    curve = [(step, value) for step, value in logged if value is not None]
    if len(curve) < 2 or curve[0][1] == curve[-1][1]:
        return None
    begin, end = curve[0][1], curve[-1][1]
    way = [(step, (value - begin) / (end - begin)) for step, value in curve]
    low, high = (_first_passed(way, part) for part in RISE_BETWEEN)
    return (high - low) / curve[-1][0]


def _first_passed(way: Sequence[tuple[float, float]], part: float) -> float:
    """Returns the step at which a curve from 0 to 1 first reaches `part`, linear in between."""
    after = next(i for i, (_, value) in enumerate(way) if value >= part)
    (step0, value0), (step1, value1) = way[after - 1], way[after]
    return step0 + (step1 - step0) * (part - value0) / (value1 - value0)


def reached(value: float, outcome: Outcome) -> bool:
    """Returns whether an outcome counts as solved; False without a threshold."""
    if outcome.solved is None:
        return False
    return value >= outcome.solved if outcome.higher_is_better else value <= outcome.solved


def _steps_value(run: Run, study: Study) -> float | None:
    """A run that never reached the threshold counts with its last step, a lower bound."""
    if run.status not in (store.COMPLETED, store.DIVERGED):
        return None
    first = steps_to_threshold(run, study.experiment.outcome)
    if first is not None:
        return float(first)
    return _number((run.result.get("budget") or {}).get("steps", run.result.get("steps")))
