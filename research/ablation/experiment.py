"""An ablation as data: question, base config, arms, axes, tuning, seeds, outcome, claims.

An experiment file defines one module-level `experiment = Experiment(...)`, which
`research.ablation.loading` reads and checks, and `research.ablation.expansion` expands into runs.
Reports need only this module, so it does not import jax.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from research.ablation.claims import Claim, Outcome, Ranges, claim_from_json
from research.configuration import Deltas
from research.errors import UserError

COSTS = ("parameters", "flops_per_token", "state_bytes")
"""Columns of the budget."""
WIDTH = "model.feedforward"
"""The config key that match="parameters" solves for."""


@dataclass(frozen=True)
class Experiment:
    """One ablation.

    Attributes:
      question: the question that the ablation answers, one sentence.
      base: path of the config file that every arm starts from.
      common: deltas on the base that all arms share.
      arms: {arm name: deltas}. The first arm is the reference of the comparisons.
      axes: {config key: values}; every arm runs at every point of their product.
      along: {"key=value" of an axis: deltas that go with that value}, for example
        {"task.length=2048": {"task.batch_size": 2}} for equally many tokens at all lengths.
      tune: {config key: values}, preferably three or more per key; each arm at each point takes the
        combination that is best on validation over `tune_seeds`, and is then trained on `seeds`,
        which tuning never saw.
      seeds: number of reported seeds. They are drawn from a hash of the experiment when it is first
        run, so that nobody chooses them, and are then kept (see `registration`). Or the seeds
        themselves, to find the runs of an older sweep again.
      tune_seeds: number of tuning seeds, drawn like `seeds` and distinct from them; or the seeds
        themselves. Unused without `tune`.
      tune_extend: maximum number of values by which a grid is extended, one at a time, on a side
        where an arm's best value lies at its edge. Applies to grids of floats in roughly equal
        ratios; 0: grids are never extended.
      outcome: the metric that is compared.
      claims: published or expected statements that are tested on the runs.
      match: "parameters" gives every arm the feed-forward width (model.feedforward) at which it has
        as many parameters as the first arm; "" leaves the arms as they are.
      same: groups of arms that are meant to be the same run at some point, such as
        (("window", "full"),) where the window is as long as the sequence. All other arms must
        differ.
      feedforward: {arm: {point: width}}, the widths that `match` found; filled in automatically.
      directions: {metric: whether higher is better}, declared by the runs; filled in automatically.
      ranges: {metric: lowest and highest possible value}, None where there is none; declared by the
        runs, filled in automatically.
      looks: numbers of seeds that the sweep was run with, ascending; filled in automatically.
      against: budget column on the x axis of the figure of outcome against cost, or "".
      ablated: budget columns ("parameters", "flops_per_token", "state_bytes") that the ablation
        varies on purpose, so that a difference there is not flagged.
      tolerance: relative difference of a budget column from the reference arm above which it is
        flagged.
    """

    question: str
    base: str
    arms: Mapping[str, Deltas]
    outcome: Outcome
    seeds: int | Sequence[int]
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    along: Mapping[str, Deltas] = field(default_factory=dict)
    common: Deltas = field(default_factory=dict)
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tune_seeds: int | Sequence[int] = 3
    tune_extend: int = 3
    claims: Sequence[Claim] = ()
    match: str = ""
    same: Sequence[Sequence[str]] = ()
    feedforward: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    directions: Mapping[str, bool] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)
    looks: Sequence[int] = ()
    against: str = ""
    ablated: Sequence[str] = ()
    tolerance: float = 0.1

    def to_json(self) -> dict:
        """Returns the experiment as JSON values, claims included."""
        return asdict(self)


def experiment_from_json(value: Mapping) -> Experiment:
    """Inverse of `Experiment.to_json`; ignores keys that are not attributes of `Experiment`.

    Raises UserError for an outcome without a direction, which the loader would have filled in.
    """
    known = {f.name: value[f.name] for f in fields(Experiment) if f.name in value}
    known["outcome"] = Outcome(**known["outcome"])
    if known["outcome"].higher_is_better is None:
        raise UserError("outcome.higher_is_better is missing; it must be true or false.")
    known["claims"] = [claim_from_json(claim) for claim in known.get("claims", ())]
    # Files from before this field existed come from sweeps that never extended a grid.
    known.setdefault("tune_extend", 0)
    if "worst" in value:  # Older files have the worst values only.
        higher = value.get("directions", {})
        known["ranges"] = {
            name: (worst, None) if higher.get(name, True) else (None, worst)
            for name, worst in value["worst"].items()
        }
    return Experiment(**known)


def seed_list(experiment: Experiment) -> Sequence[int]:
    """Returns the reported seeds. Raises ValueError if they are not drawn yet."""
    if isinstance(experiment.seeds, int):
        raise ValueError("the seeds are not drawn yet")
    return experiment.seeds


def tune_seed_list(experiment: Experiment) -> Sequence[int]:
    """Returns the tuning seeds, () without tuning. Raises ValueError if they are not drawn yet."""
    if not experiment.tune:
        return ()
    if isinstance(experiment.tune_seeds, int):
        raise ValueError("the tuning seeds are not drawn yet")
    return experiment.tune_seeds


def points(experiment: Experiment) -> list[dict[str, Any]]:
    """Returns all axis points, the product of the axes in their given order."""
    keys = list(experiment.axes)
    values = itertools.product(*experiment.axes.values())
    return [dict(zip(keys, combination, strict=True)) for combination in values]


def point_name(point: Mapping[str, Any]) -> str:
    """Returns "key=value, key=value", sorted by key."""
    return ", ".join(f"{key}={point[key]!r}" for key in sorted(point))


def point_deltas(experiment: Experiment, point: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the deltas of an axis point: its values, and those that go `along` with them."""
    values = (point_name({key: value}) for key, value in point.items())
    return dict(point) | {k: v for one in values for k, v in experiment.along.get(one, {}).items()}


def tuning_grid(experiment: Experiment) -> list[dict[str, Any]]:
    """Returns all combinations of the tuned values; one empty combination without tuning."""
    keys = list(experiment.tune)
    return [
        dict(zip(keys, combination, strict=True))
        for combination in itertools.product(*experiment.tune.values())
    ]
