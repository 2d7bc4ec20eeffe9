"""Reads a sweep directory into a `Study`: the experiment, its runs, and measures of them.

The sweep (see `research.runs.store`) may be finished or still running.

Seeds without a number are never dropped silently:
  diverged  the seed gets the worst value that its metric declares, or an infinity if there is none:
            it has not solved the task, and a mean over it is not finite.
  failed    the run raised an exception. That says nothing about the arm, so the seed has no value;
            the error is shown, and the remaining seeds get no verdict.
  waiting   there is no result yet; treated like failed.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.ablation.cells import read_cells
from research.ablation.claims import RISE, SLICE, STEPS, higher_is_better
from research.ablation.experiment import (
    Experiment,
    Outcome,
    experiment_from_json,
    points,
    seed_list,
    tune_seed_list,
    tuning_grid,
)
from research.ablation.measure import (
    COSTS,
    STOPWATCH,
    TIMES,
    VALUES,
    Measure,
    Point,
    Progress,
    point_key,
)
from research.ablation.registration import Registration, registration_from_json
from research.ablation.tuning import choice_deviations
from research.errors import UserError
from research.report.judging.curves import progress, rise
from research.runs import store

WAITING = "waiting"
"""Status of a cell without a result; the other statuses are defined in `store`."""

RISE_BETWEEN = 0.2, 0.8
"""Fractions of the rise between which the rise time is measured."""


@dataclass(frozen=True)
class Run:
    """One cell of the sweep, with the files of its run.

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
        """The (arm, axis point) that the run belongs to."""
        return self.arm, point_key(self.point)


@dataclass(frozen=True)
class Study:
    """The contents of a sweep directory.

    Attributes:
      name: name of the experiment.
      file: path of the experiment file.
      workdir: the directory.
      experiment: the experiment.
      runs: one per cell written so far: tuning runs, then report runs, in the order of points.
      planned: number of cells of the whole sweep, including those not written yet.
      environment: environment.json of the sweep.
      plain: parsed experiment.json.
      registration: record of the first run; None for sweeps that predate registrations.
      resampled: stored sentence-level comparisons, if the sentences themselves are gone.
    """

    name: str
    file: str
    workdir: Path
    experiment: Experiment
    runs: Sequence[Run]
    planned: int
    environment: Mapping[str, Any]
    plain: Mapping[str, Any] = field(default_factory=dict, repr=False)
    registration: Registration | None = None
    resampled: Mapping[str, Any] | None = None

    @property
    def reported(self) -> list[Run]:
        """The runs of the report stage."""
        return [run for run in self.runs if run.stage == "report"]


def load_study(workdir: str | Path) -> Study:
    """Reads a sweep directory. Raises UserError if it is not one, or if a file is damaged."""
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
    runs: dict[str, tuple] = {}
    cells = read_cells(workdir)
    for cell in cells:
        # Two cells may share a run, which is then read only once.
        run = cell["run"]
        if run not in runs or (cell["stage"] == "report" and not runs[run][1]):
            runs[run] = _read_run(workdir / run, cell["stage"] == "report")
    read = {cell["run"] + cell["stage"]: runs[cell["run"]] for cell in cells}
    environment = _read(workdir / "environment.json") or {}
    return make_study(plain, cells, read, environment, workdir, experiment)


def make_study(
    plain: Mapping[str, Any],
    cells: Sequence[Mapping],
    read: Mapping[str, tuple],
    environment: Mapping[str, Any],
    workdir: Path,
    experiment: Experiment,
) -> Study:
    """Returns the study of a sweep.

    Args:
      plain: parsed experiment.json.
      cells: rows of cells.json; cells that are not part of the experiment are left out.
      read: {run id + stage: (result, curve, config, environment)}.
      environment: environment of the sweep.
      workdir: directory of the sweep or of its results.json.
      experiment: the experiment restored from `plain`.
    """
    shown = _ordered(cells, experiment)
    grid = len(tuning_grid(experiment)) * len(tune_seed_list(experiment))
    reported = len(seed_list(experiment))
    pairs = [(arm, point_key(point)) for point in points(experiment) for arm in experiment.arms]
    known = Counter((cell["arm"], point_key(cell["point"]), cell["stage"]) for cell in shown)
    return Study(
        name=str(plain.get("name") or workdir.name),
        file=str(plain.get("file") or ""),
        workdir=workdir,
        experiment=experiment,
        runs=[_run(cell, *read[cell["run"] + cell["stage"]]) for cell in shown],
        # Tuning may have extended grids, and more seeds may exist than the experiment asks for.
        planned=sum(
            max(grid, known[arm, point, "tune"]) + max(reported, known[arm, point, "report"])
            for arm, point in pairs
        ),
        environment=environment,
        plain=plain,
        registration=registration_from_json(plain.get("registration")),
    )


def _ordered(cells: Sequence[Mapping], experiment: Experiment) -> list[Mapping]:
    """Returns the known cells of the experiment, tuning cells first, then report cells."""
    pairs = [(arm, point_key(point)) for point in points(experiment) for arm in experiment.arms]
    place = {pair: i for i, pair in enumerate(pairs)}
    known = [(place.get((c["arm"], point_key(c["point"]))), c) for c in cells]
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
        config=config or {},
        environment=environment or {},
    )


def metric_value(run: Run, outcome: Outcome, metric: str) -> Any:
    """Returns a metric from result.json at the outcome's `at` and split; None if it is absent."""
    values = (run.result.get(outcome.at) or {}).get(outcome.split) or {}
    # JSON has no NaN, so the store writes it as null: a null value is NaN, not absent.
    return math.nan if metric in values and values[metric] is None else values.get(metric)


def measure(study: Study, metric: str = "", better: str = "") -> Measure:
    """Measures one quantity for every reported run; `metric` is as in `research.ablation.claims`.

    `better` ("higher" or "lower") overrides the declared direction of the metric.
    """
    outcome, runs = study.experiment.outcome, study.reported
    named = bool(metric)
    metric = metric or outcome.metric
    higher = higher_is_better(metric, outcome, better, study.experiment.directions)
    axis_points = points(study.experiment)
    labels = slice_labels(study, metric)
    worst = _worst(study, metric, higher)
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
        return Measure(metric, values, expanded, higher, missing=absent, progress=going)
    group, _, column = metric.partition("/")
    kind = VALUES
    if metric == STEPS:
        kind, values = TIMES, [_steps_value(run, study) for run in runs]
    elif metric == RISE:
        values = [rise_time(run, study.experiment.outcome) for run in runs]
    elif column and group in ("budget", "timing"):
        kind = COSTS if group == "budget" else STOPWATCH
        values = [_number((run.result.get(group) or {}).get(column)) for run in runs]
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
        kind,
        solved=None if named else outcome.solved,
        chance=outcome.chance if metric == outcome.metric else None,
        missing=absent,
        choice=_choice(study, metric, named) if kind == VALUES and metric != RISE else {},
        progress=_progress(study, metric, higher) if kind == VALUES else {},
    )


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


def _worst(study: Study, metric: str, higher: bool | None) -> float:
    """Returns the value assigned to diverged seeds for a metric, sliced or not."""
    declared = study.experiment.worst
    return declared.get(metric, declared.get(metric.partition("_by_")[0], _unbounded(higher)))


def _unbounded(higher: bool | None) -> float:
    return math.nan if higher is None else -math.inf if higher else math.inf


def _value(run: Run, own: Any, worst: float) -> float | None:
    """Returns the value of a run: the worst value if it diverged, None without a result."""
    if run.status == store.DIVERGED or _is_nan(run, own):
        return worst
    return _number(own) if run.status == store.COMPLETED else None


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


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def has_diverged(run: Run, outcome: Outcome) -> bool:
    """Returns whether a run counts as diverged: by its status, or because its outcome is NaN."""
    return run.status == store.DIVERGED or _is_nan(run, metric_value(run, outcome, outcome.metric))


def _is_nan(run: Run, value: Any) -> bool:
    return run.status == store.COMPLETED and isinstance(value, float) and math.isnan(value)


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
    logged = [(row["step"], _number(row.get(f"validation/{outcome.metric}"))) for row in run.curve]
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
