"""Re-evaluates a finished run with the current code and data, and compares the results."""

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from research.errors import check_name
from research.interpret.analyses import analysis_split, run_analyses
from research.parallel.layout import ONE_DEVICE
from research.parallel.mesh import make_mesh
from research.training.loop import member_for_analysis
from research.training.program import build_program, make_members
from research.training.records.metrics import mean_metrics
from research.training.runs import LoadedRun, load_run_task
from research.training.scores import SPEED, score_decoded

TOLERANCE = 1e-4
"""Relative tolerance for equal results; rounding differs between devices."""


class Evaluation(NamedTuple):
    """Results of an evaluation.

    Attributes:
      metrics: {split: {metric: number, or a list for a sliced metric}}, like "best" in result.json.
      labels: {sliced metric: label of each slice}.
    """

    metrics: dict[str, dict[str, Any]]
    labels: Mapping[str, Sequence[str]]


def evaluate(opened: LoadedRun, split: str = "") -> Evaluation:
    """Evaluates the best parameters of a run in the same way as at the end of training.

    Does not change the run.

    Args:
      opened: the run.
      split: the split to evaluate; "": all.

    Raises UserError for an unknown split, or if the data differ from the run's.
    """
    config, task = opened.config, load_run_task(opened)
    last = analysis_split(task)
    if split:
        check_name("--split", split, task.splits)
        task = dataclasses.replace(task, splits=(split,))
    program = build_program(config, ONE_DEVICE, make_mesh(ONE_DEVICE), task)
    stacked = jax.tree.map(lambda leaf: leaf[None], opened.params)
    seeds = make_members([config]).seed
    metrics: dict[str, dict[str, Any]] = {
        name: mean_metrics(run(stacked, program.data, seeds).sums, 0)
        for name, run in program.evaluate.items()
    }
    # The run already has the files that decoding writes.
    with tempfile.TemporaryDirectory() as scratch:
        scores = score_decoded(program, config, opened.params, Path(scratch))
    for name, found in scores.items():
        metrics[name] |= found
    labels = dict(program.slices)
    if config.interpret.final and last in task.splits:
        answers = run_analyses(
            config.interpret.final, member_for_analysis(program, config, stacked, 0)
        )
        metrics[last] |= answers.metrics | answers.slices
        labels |= answers.labels
    return Evaluation(metrics, labels)


def metric_changes(
    metrics: Mapping[str, Mapping[str, Any]], result: Mapping[str, Any]
) -> list[str]:
    """Returns a description of each metric that differs from a run's result.

    Ignores speeds; a metric that is missing on one side counts as different.

    Args:
      metrics: metrics of an `Evaluation`.
      result: the content of result.json.
    """
    found = []
    for split, new in metrics.items():
        old = result.get("best", {}).get(split, {})
        for name in sorted((new.keys() | old.keys()) - {SPEED}):
            if not _same(new.get(name), old.get(name)):
                found.append(f"{split} {name} was {old.get(name)}, is {new.get(name)}")
    return found


def _same(a: Any, b: Any) -> bool:
    """Returns whether values are equal up to rounding; None (JSON null) stands for NaN."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, list) or isinstance(b, list):
        return False
    a, b = (math.nan if value is None else value for value in (a, b))
    return (math.isnan(a) and math.isnan(b)) or math.isclose(
        a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE**2
    )
