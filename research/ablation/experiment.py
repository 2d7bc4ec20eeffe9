"""An ablation as data: question, base config, arms, axes, tuning, seeds, outcome, claims.

An experiment file defines one module-level `experiment = Experiment(...)`. This module turns it
into cells: one cell is one run, identified by its resolved config. It imports no jax.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from research.ablation.claims import Claim, claim_from_json, higher_is_better
from research.configuration import Deltas, apply_deltas, load_config, load_module, run_id
from research.errors import UserError, did_you_mean

COSTS = ("parameters", "flops_per_token", "state_bytes")
"""Columns of the budget."""


@dataclass(frozen=True)
class Outcome:
    """What is compared.

    Attributes:
      metric: name of a scalar metric of the task, for example "accuracy".
      split: evaluation split that is reported; tuning always uses "validation".
      at: "best" (parameters with the best validation value) or "final" (the last step).
      higher_is_better: direction of the metric.
      solved: threshold that counts as solving the task, or None. With it the report adds the
        fraction of seeds that solved it and the steps they took.
    """

    metric: str
    split: str = "test"
    at: str = "best"
    higher_is_better: bool = True
    solved: float | None = None


@dataclass(frozen=True)
class Experiment:
    """One ablation.

    Attributes:
      question: what the ablation asks, one sentence.
      base: path of the config file that every arm starts from.
      common: deltas on the base that all arms share.
      arms: {arm name: deltas}. The first arm is the reference of the comparisons.
      axes: {config key: values}; every arm runs at every point of their product.
      tune: {config key: values}; each arm at each point takes the combination that is best on
        validation over `tune_seeds`, and is then trained on `seeds`, which tuning never saw.
      seeds: seeds that are reported.
      tune_seeds: seeds used to choose among `tune`; unused without it.
      outcome: the compared quantity.
      claims: published or expected statements, checked on the statistics.
      match: "parameters" gives every arm the feed-forward width (model.feedforward) at which it has
        as many parameters as the first arm; "" leaves the arms as they are.
      feedforward: {arm: {point: width}}, what `match` found; not to be written by hand.
      against: a budget column that the outcome is drawn against, or "".
      ablated: budget columns ("parameters", "flops_per_token", "state_bytes") that are the subject
        of the ablation, so that a difference there is not flagged.
      tolerance: relative difference of a budget column from the reference arm that is flagged.
    """

    question: str
    base: str
    arms: Mapping[str, Deltas]
    outcome: Outcome
    seeds: Sequence[int]
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    common: Deltas = field(default_factory=dict)
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tune_seeds: Sequence[int] = ()
    claims: Sequence[Claim] = ()
    match: str = ""
    feedforward: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    against: str = ""
    ablated: Sequence[str] = ()
    tolerance: float = 0.1

    def to_json(self) -> dict:
        """Returns the experiment as JSON values, claims included."""
        return asdict(self)


def experiment_from_json(value: Mapping) -> Experiment:
    """Inverse of `Experiment.to_json`; keys that are no attribute of it are ignored."""
    known = {f.name: value[f.name] for f in fields(Experiment) if f.name in value}
    known["outcome"] = Outcome(**known["outcome"])
    known["claims"] = [claim_from_json(claim) for claim in known.get("claims", ())]
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
      config: resolved config (locked); its hash is the run id.
    """

    arm: str
    point: Mapping[str, Any]
    stage: str
    tuned: Mapping[str, Any]
    seed: int
    config: ConfigDict

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


def load_experiment(path: str | Path) -> Experiment:
    """Returns the `experiment` of a file, checked. Raises UserError naming what is wrong."""
    module = load_module(path)
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"{path} defines no `experiment = Experiment(...)`.")
    if not experiment.arms:
        raise UserError(f"{path}: arms is empty; an ablation compares at least one arm.")
    if not experiment.seeds:
        raise UserError(f"{path}: seeds is empty; for example seeds=(0, 1, 2).")
    if experiment.tune and not experiment.tune_seeds:
        raise UserError(f"{path}: tune is given without tune_seeds; for example (100, 101).")
    if experiment.against not in ("", *COSTS):
        hint = did_you_mean(experiment.against, COSTS)
        raise UserError(
            f"{path}: against={experiment.against!r} is unknown.{hint} Allowed: {', '.join(COSTS)}."
        )
    overlap = set(experiment.seeds) & set(experiment.tune_seeds)
    if overlap:
        raise UserError(
            f"{path}: seeds {sorted(overlap)} are in both seeds and tune_seeds; the reported "
            "seeds must be fresh."
        )
    for claim in experiment.claims:
        _check_claim(path, experiment, claim)
    return experiment


def _check_claim(path: str | Path, experiment: Experiment, claim: Claim) -> None:
    where = f"{path}: claim {claim.text!r}"
    for arm in claim.arms():
        if arm not in experiment.arms:
            hint = did_you_mean(arm, experiment.arms)
            raise UserError(f"{where} names the unknown arm {arm!r}.{hint}")
    for axis in claim.axes():
        if axis not in experiment.axes:
            hint = did_you_mean(axis, experiment.axes)
            raise UserError(f"{where} names the unknown axis {axis!r}.{hint}")
    for axis, value in claim.test.at.items() if claim.test else ():
        if axis in experiment.axes and value not in experiment.axes[axis]:
            raise UserError(
                f"{where} is at {axis}={value!r}, which the axis does not take; its values are "
                f"{', '.join(map(repr, experiment.axes[axis]))}."
            )
    # A direction needs to know which way the metric is better, before hours of training.
    better = getattr(claim.test, "better", None)
    if claim.test and better is not None:
        if higher_is_better(claim.test.metric, experiment.outcome, better) is None:
            raise UserError(
                f"{where} compares the metric {claim.test.metric!r}; say better='higher' or "
                "better='lower'."
            )


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
        deltas["model.feedforward"] = experiment.feedforward[arm][point_name(point)]
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
        for seed in experiment.tune_seeds
    ]


def report_cells(experiment: Experiment, arm: str, point: Deltas, chosen: Deltas) -> list[Cell]:
    """Returns the cells of one arm at one point with its chosen values, one per reported seed."""
    return [resolve(experiment, arm, point, chosen, seed, "report") for seed in experiment.seeds]
