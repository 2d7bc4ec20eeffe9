"""An ablation as data: question, base config, arms, axes, tuning, seeds, outcome, claims.

An experiment file defines one module-level `experiment = Experiment(...)`, which
`research.ablation.loading` reads and checks. This module turns it into cells: one cell is one run,
identified by its resolved config. It imports no jax.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ml_collections import ConfigDict

from research.ablation.claims import Claim, Outcome, claim_from_json
from research.configuration import Deltas, apply_deltas, load_config, run_id
from research.errors import UserError

COSTS = ("parameters", "flops_per_token", "state_bytes")
"""Columns of the budget."""
WIDTH = "model.feedforward"
"""The key that match="parameters" solves."""


@dataclass(frozen=True)
class Experiment:
    """One ablation.

    Attributes:
      question: what the ablation asks, one sentence.
      base: path of the config file that every arm starts from.
      common: deltas on the base that all arms share.
      arms: {arm name: deltas}. The first arm is the reference of the comparisons.
      axes: {config key: values}; every arm runs at every point of their product.
      tune: {config key: values}, three or more of them; each arm at each point takes the
        combination that is best on validation over `tune_seeds`, and is then trained on `seeds`,
        which tuning never saw.
      seeds: how many seeds are reported: they are drawn from a hash of the experiment when it is
        first run, so that nobody has chosen them, and stay (see `registration`). Or the seeds
        themselves, where old runs are to be found again.
      tune_seeds: how many seeds choose among `tune`, drawn as `seeds` are and others than these;
        or the seeds themselves. Unused without `tune`.
      tune_extend: how many values a grid may be continued by on a side where an arm's best value
        lies at its edge, one after the other, where its values are floats in about equal ratios;
        0: the grid stays as it is.
      outcome: the compared quantity.
      claims: published or expected statements, checked on the stats.
      match: "parameters" gives every arm the feed-forward width (model.feedforward) at which it has
        as many parameters as the first arm; "" leaves the arms as they are.
      same: groups of arms that are meant to be the same run at some point, such as
        (("window", "full"),) where the window is as long as the sequence. Other arms may not be.
      feedforward: {arm: {point: width}}, what `match` found; not to be written by hand.
      directions: {metric: whether higher is better}, as its runs declare them; not to be written
        by hand.
      worst: {metric: value of a model that does nothing right}, as its runs declare them; not to be
        written by hand.
      looks: numbers of seeds that the sweep was run with, ascending; not to be written by hand.
      against: a budget column that the outcome is drawn against, or "".
      ablated: budget columns ("parameters", "flops_per_token", "state_bytes") that are the subject
        of the ablation, so that a difference there is not flagged.
      tolerance: relative difference of a budget column from the reference arm that is flagged.
    """

    question: str
    base: str
    arms: Mapping[str, Deltas]
    outcome: Outcome
    seeds: int | Sequence[int]
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    common: Deltas = field(default_factory=dict)
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tune_seeds: int | Sequence[int] = 3
    tune_extend: int = 3
    claims: Sequence[Claim] = ()
    match: str = ""
    same: Sequence[Sequence[str]] = ()
    feedforward: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    directions: Mapping[str, bool] = field(default_factory=dict)
    worst: Mapping[str, float] = field(default_factory=dict)
    looks: Sequence[int] = ()
    against: str = ""
    ablated: Sequence[str] = ()
    tolerance: float = 0.1

    def to_json(self) -> dict:
        """Returns the experiment as JSON values, claims included."""
        return asdict(self)


def experiment_from_json(value: Mapping) -> Experiment:
    """Inverse of `Experiment.to_json`; keys that are no attribute of it are ignored.

    Raises UserError for an outcome without a direction: one that was never loaded from a file.
    """
    known = {f.name: value[f.name] for f in fields(Experiment) if f.name in value}
    known["outcome"] = Outcome(**known["outcome"])
    if known["outcome"].higher_is_better is None:
        raise UserError("outcome.higher_is_better is not there; say true or false.")
    known["claims"] = [claim_from_json(claim) for claim in known.get("claims", ())]
    # Grids stayed as they were before there was the field.
    known.setdefault("tune_extend", 0)
    return Experiment(**known)


@dataclass(frozen=True)
class Cell:
    """One run of an experiment: which arm, where on the axes, what for.

    Attributes:
      arm: name of the arm.
      point: {axis key: value}.
      stage: "tune" or "report".
      tuned: {tuned key: value} of this run; in the report stage, the chosen values.
      seed: the run's seed.
      look: how often seeds, or values to tune, had been added before this one.
      config: resolved config (locked); its hash is the run id.
    """

    arm: str
    point: Mapping[str, Any]
    stage: str
    tuned: Mapping[str, Any]
    seed: int
    config: ConfigDict
    look: int = 0

    @property
    def run(self) -> str:
        return run_id(self.config)

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


def seed_list(experiment: Experiment) -> Sequence[int]:
    """Returns the reported seeds. Raises ValueError before they are drawn."""
    if isinstance(experiment.seeds, int):
        raise ValueError("the seeds are not drawn yet")
    return experiment.seeds


def tune_seed_list(experiment: Experiment) -> Sequence[int]:
    """Returns the tuning seeds, none without tuning. Raises ValueError before they are drawn."""
    if not experiment.tune:
        return ()
    if isinstance(experiment.tune_seeds, int):
        raise ValueError("the tuning seeds are not drawn yet")
    return experiment.tune_seeds


def points(experiment: Experiment) -> list[dict[str, Any]]:
    """Returns the product of the axes, in the order they are written."""
    keys = list(experiment.axes)
    values = itertools.product(*experiment.axes.values())
    return [dict(zip(keys, combination, strict=True)) for combination in values]


def point_name(point: Mapping[str, Any]) -> str:
    """Returns "key=value, key=value" in the order of the keys."""
    return ", ".join(f"{key}={point[key]!r}" for key in sorted(point))


def tuning_grid(experiment: Experiment) -> list[dict[str, Any]]:
    """Returns the product of `tune`; one empty combination without tuning."""
    keys = list(experiment.tune)
    return [
        dict(zip(keys, combination, strict=True))
        for combination in itertools.product(*experiment.tune.values())
    ]


def resolve(
    experiment: Experiment, arm: str, point: Deltas, tuned: Deltas, seed: int, stage: str
) -> Cell:
    """Returns the cell: base, then common, the axis point, the arm, its matched feed-forward width,
    the tuned values."""
    base = load_config(experiment.base)
    deltas = {**experiment.common, **point, **experiment.arms[arm], **tuned, "seed": seed}
    if arm in experiment.feedforward:
        deltas[WIDTH] = experiment.feedforward[arm][point_name(point)]
    try:
        config = apply_deltas(base, deltas)
    except UserError as error:
        raise UserError(f"arm {arm!r}: {error}") from None
    return Cell(arm, point, stage, tuned, seed, config)


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
    """Returns the cells of one arm at one point with its chosen values, one per reported seed."""
    cells = []
    for number, seed in enumerate(seed_list(experiment)):
        look = sum(number >= already for already in experiment.looks)
        cell = resolve(experiment, arm, point, chosen, seed, "report")
        cells.append(replace(cell, look=look))
    return cells
