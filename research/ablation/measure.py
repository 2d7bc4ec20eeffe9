"""One measured quantity for every reported run, indexed by arm, axis point and seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research.stats import ItemErrors, Sample

Point = tuple[tuple[str, Any], ...]
"""An axis point as a sorted tuple of (key, value), so that it can be a dictionary key."""

VALUES, TIMES, COSTS, STOPWATCH = "values", "times", "costs", "stopwatch"
TURNS = "turns"
"""Kinds of quantities: a number per seed; steps to an event, infinite if it never happened; a
cost, which is the same for every seed; a time measured for all seeds trained in one program; times
of a step in rounds in which all arms at all points took turns."""


def point_key(point: Mapping[str, Any]) -> Point:
    """Returns the point as a sorted tuple; lists inside it become tuples."""
    return tuple(sorted((key, _hashable(value)) for key, value in point.items()))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Progress:
    """Late progress in training of one arm at one point, from its validation curves.

    Attributes:
      curve: name of the metric of the curves.
      own: whether that is the measured metric; if it has no curve, the loss stands in for it.
      gains: {seed: improvement in the last part of training}.
      learned: improvement over all of training of the arm that improved most at this point.
      problem: why there are no gains; "" if there are.
    """

    curve: str
    own: bool
    gains: Mapping[int, float]
    learned: float
    problem: str = ""


@dataclass(frozen=True)
class Measure:
    """One quantity of every reported run.

    Attributes:
      name: name of the quantity in the report.
      values: {(arm, point): {seed: value}}, or {round: value} for TURNS. A diverged seed has the
        worst possible value, or an infinity if the metric is unbounded; a seed without a result is
        absent.
      points: the expected points, in the order of the axes.
      higher_is_better: direction, or None if neither direction is better.
      ends: lowest and highest possible value, infinite where there is none.
      kind: VALUES, TIMES, COSTS, STOPWATCH or TURNS.
      solved: threshold at which a seed counts as having solved the task, or None. With a threshold,
        claims concern the probability of solving.
      chance: chance level, or None.
      missing: {(arm, point): why seeds are absent}.
      items: errors of the means over the test items, by (arm, point); empty if they are unknown.
      choice: {(arm, point): standard deviation that the choice of tuned values adds to the compared
        statistic}; absent without tuning, or if it cannot be estimated.
      progress: {(arm, point without slices): late progress}; empty if the metric has no direction.
    """

    name: str
    values: Mapping[tuple[str, Point], Sample]
    points: Sequence[Mapping[str, Any]]
    higher_is_better: bool | None
    ends: tuple[float, float] = (-math.inf, math.inf)
    kind: str = VALUES
    solved: float | None = None
    chance: float | None = None
    missing: Mapping[tuple[str, Point], str] = field(default_factory=dict)
    items: ItemErrors = field(default_factory=ItemErrors)
    choice: Mapping[tuple[str, Point], float] = field(default_factory=dict)
    progress: Mapping[tuple[str, Point], Progress] = field(default_factory=dict)

    def sample(self, arm: str, point: Mapping[str, Any]) -> Sample:
        """Returns {seed: value} of an arm at a point; {} without results."""
        return self.values.get((arm, point_key(point)), {})

    def reached(self, value: float, border: float) -> bool:
        """Returns whether a value is at least as good as `border`."""
        return value <= border if self.higher_is_better is False else value >= border
