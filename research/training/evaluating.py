"""A finished run evaluated once more, with the code and the data as they are now."""

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from research.errors import check_name
from research.interpret.questions import answered, split_of
from research.parallel.layout import ONE_DEVICE
from research.parallel.mesh import make_mesh
from research.training.loop import trained
from research.training.program import build_program, make_members
from research.training.records.metrics import ratios
from research.training.runs import Opened, load_task_of, made_by_this_version
from research.training.scores import SPEED, score_decoded

TOLERANCE = 1e-4
"""Relative difference up to which numbers are the same: other devices round in another way."""


class Evaluation(NamedTuple):
    """What a model is worth.

    Attributes:
      metrics: {split: {metric: number, or numbers of a sliced one}}, as "best" in result.json.
      labels: {sliced metric: what each of its numbers is of}.
    """

    metrics: dict[str, dict[str, Any]]
    labels: Mapping[str, Sequence[str]]


def evaluate(opened: Opened, split: str = "") -> Evaluation:
    """Evaluates the best parameters of a run as the end of its training does.

    Nothing of the run changes.

    Args:
      opened: the run.
      split: the only one that is wanted; "": all.

    Raises UserError for a split that the task does not have, and for other data than the run's.
    """
    config, task = opened.config, load_task_of(opened)
    last = split_of(task)
    if split:
        check_name("--split", split, task.splits)
        task = dataclasses.replace(task, splits=(split,))
    with made_by_this_version(opened.path):
        program = build_program(config, ONE_DEVICE, make_mesh(ONE_DEVICE), task)
    stacked = jax.tree.map(lambda leaf: leaf[None], opened.params)
    seeds = make_members([config]).seed
    metrics: dict[str, dict[str, Any]] = {
        name: ratios(run(stacked, program.data, seeds), 0) for name, run in program.evaluate.items()
    }
    # What decoding writes is in the run already.
    with tempfile.TemporaryDirectory() as scratch:
        scores = score_decoded(program, config, opened.params, Path(scratch))
    for name, found in scores.items():
        metrics[name] |= found
    labels = dict(program.slices)
    if config.interpret.final and last in task.splits:
        answers = answered(config.interpret.final, trained(program, config, stacked, 0))
        metrics[last] |= answers.metrics | answers.slices
        labels |= answers.labels
    return Evaluation(metrics, labels)


def changes(metrics: Mapping[str, Mapping[str, Any]], result: Mapping[str, Any]) -> list[str]:
    """Returns a text for each number that is another one than in a run's result.

    Speeds do not count. A metric that either side lacks does.

    Args:
      metrics: of an `Evaluation`.
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
    """Whether values are equal up to rounding; JSON's null is NaN."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, list) or isinstance(b, list):
        return False
    a, b = (math.nan if value is None else value for value in (a, b))
    return (math.isnan(a) and math.isnan(b)) or math.isclose(
        a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE**2
    )
