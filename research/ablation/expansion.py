"""Expands an experiment into cells: one cell is one run, identified by the options it reads."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ml_collections import ConfigDict

from research.ablation.experiment import (
    WIDTH,
    Experiment,
    point_deltas,
    point_name,
    points,
    seed_list,
    tune_seed_list,
    tuning_grid,
)
from research.ablation.measure import point_key
from research.ablation.tuning import next_extension, tuning_scores
from research.configuration import Deltas, apply_deltas, load_config
from research.errors import UserError
from research.training import schema

REPLICATE = "{replicate}"
"""Text in a delta that stands for the place of a run's seed, from 0, among those of its stage."""


@dataclass(frozen=True)
class Cell:
    """One run of an experiment: its arm, axis point and stage.

    Attributes:
      arm: name of the arm.
      point: {axis key: value}.
      stage: "tune" or "report".
      tuned: {tuned key: value} of this run; in the report stage, the chosen values.
      seed: the run's seed.
      look: how many times the number of seeds had been raised before this seed was added.
      config: the options that the run reads (locked); the run id is a hash of them.
    """

    arm: str
    point: Mapping[str, Any]
    stage: str
    tuned: Mapping[str, Any]
    seed: int
    config: ConfigDict
    look: int = 0

    @functools.cached_property
    def run(self) -> str:
        return schema.run_id(self.config)

    def to_json(self) -> dict:
        """Returns the row of cells.json that the report reads."""
        return {
            "arm": self.arm,
            "point": dict(self.point),
            "stage": self.stage,
            "tuned": dict(self.tuned),
            "seed": self.seed,
            "run": self.run,
        }


def resolve(
    experiment: Experiment, arm: str, point: Deltas, tuned: Deltas, seed: int, stage: str
) -> Cell:
    """Returns a cell, applying deltas in this order: base, common, axis point, arm, matched
    feed-forward width, tuned values. `REPLICATE` in texts is the place of the seed."""
    base = load_config(experiment.base)
    of_point = point_deltas(experiment, point)
    deltas = {**experiment.common, **of_point, **experiment.arms[arm], **tuned, "seed": seed}
    seeds = seed_list(experiment) if stage == "report" else tune_seed_list(experiment)
    deltas = {key: of_replicate(value, list(seeds).index(seed)) for key, value in deltas.items()}
    if arm in experiment.feedforward:
        deltas[WIDTH] = experiment.feedforward[arm][point_name(point)]
    try:
        config = schema.resolve(apply_deltas(base, deltas))
    except UserError as error:
        raise UserError(f"arm {arm!r}: {error}") from None
    return Cell(arm, point, stage, tuned, seed, config)


def of_replicate(value: Any, number: int) -> Any:
    """Returns a value of a delta in which `REPLICATE` is a number, in texts and tuples of them."""
    if isinstance(value, str):
        return value.replace(REPLICATE, str(number))
    if isinstance(value, tuple | list):
        return tuple(of_replicate(one, number) for one in value)
    return value


def tuning_cells(experiment: Experiment) -> list[Cell]:
    """Returns the cells of the tuning stage; empty when nothing is tuned."""
    if not experiment.tune:
        return []
    return [
        resolve(experiment, arm, point, tuned, seed, "tune")
        for point in points(experiment)
        for arm in experiment.arms
        for tuned in tuning_grid(experiment)
        for seed in tune_seed_list(experiment)
    ]


def report_cells(experiment: Experiment, arm: str, point: Deltas, chosen: Deltas) -> list[Cell]:
    """Returns the report cells of one arm at one point, one per seed, with the chosen values."""
    cells = []
    for number, seed in enumerate(seed_list(experiment)):
        look = sum(number >= already for already in experiment.looks)
        cell = resolve(experiment, arm, point, chosen, seed, "report")
        cells.append(replace(cell, look=look))
    return cells


def added_cells(
    experiment: Experiment, cells: Sequence[Cell], results: Mapping[str, Mapping]
) -> list[Cell]:
    """Returns the tuning cells to add: one more value for each grid that needs an extension.

    Args:
      experiment: the experiment, with its tuning seeds drawn.
      cells: the tuning cells so far, in grid order.
      results: {run id: result.json} of the finished ones.
    """
    places = {(cell.arm, point_key(cell.point)): cell for cell in cells}
    found = tuning_scores(experiment.outcome, [cell.to_json() for cell in cells], results)
    more: list[Cell] = []
    for key, scores in found.items():
        added = next_extension(experiment, scores)
        if added is None:
            continue
        name, value = added
        tried = {k: list(dict.fromkeys(c[k] for c, _ in scores)) for k in experiment.tune}
        look = 1 + sum(len(v) - len(experiment.tune[k]) for k, v in tried.items())
        for values in itertools.product(*(tried | {name: [value]}).values()):
            tuned = dict(zip(experiment.tune, values, strict=True))
            for seed in tune_seed_list(experiment):
                cell = resolve(experiment, key[0], places[key].point, tuned, seed, "tune")
                more.append(replace(cell, look=look))
    return more
