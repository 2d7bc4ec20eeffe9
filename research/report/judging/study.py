"""A sweep as a report sees it: the experiment and its runs, with what a run says of a metric.

Seeds without a number are never dropped silently:
  diverged  the seed gets the worst value that its metric declares, or an infinity if there is none:
            it has not solved the task, and a mean over it is not finite.
  failed    the run raised an exception. That says nothing about the arm, so the seed has no value;
            the error is shown, and the remaining seeds get no verdict.
  waiting   there is no result yet; treated like failed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from research.ablation.costs import Costs
from research.ablation.experiment import Experiment, Outcome
from research.ablation.measure import Point, point_key
from research.ablation.registration import Registration
from research.runs import store
from research.stats import ItemErrors

WAITING = "waiting"
"""Status of a cell without a result; the other statuses are defined in `store`."""


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
      items: {metric: errors of its means over the test items, by (arm, point)}, for the outcome and
        the metrics of claims; metrics whose runs kept no results of items are absent.
      costs: measured costs of a training step; without rows unless `research.costs` was run.
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
    items: Mapping[str, ItemErrors] = field(default_factory=dict, repr=False)
    costs: Costs = field(default_factory=Costs)

    @property
    def reported(self) -> list[Run]:
        """The runs of the report stage."""
        return [run for run in self.runs if run.stage == "report"]


def metric_value(run: Run, outcome: Outcome, metric: str) -> Any:
    """Returns a metric from result.json at the outcome's `at` and split; None if it is absent."""
    values = (run.result.get(outcome.at) or {}).get(outcome.split) or {}
    # JSON has no NaN, so the store writes it as null: a null value is NaN, not absent.
    return math.nan if metric in values and values[metric] is None else values.get(metric)


def finite_number(value: Any) -> float | None:
    """Returns a value from JSON as a float; None if it is no finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def has_diverged(run: Run, outcome: Outcome) -> bool:
    """Returns whether a run counts as diverged: by its status, or because its outcome is NaN."""
    return run.status == store.DIVERGED or is_nan(run, metric_value(run, outcome, outcome.metric))


def is_nan(run: Run, value: Any) -> bool:
    """Returns whether a value of a run that was trained to the end is NaN."""
    return run.status == store.COMPLETED and isinstance(value, float) and math.isnan(value)
