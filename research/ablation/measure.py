"""A quantity of every reported run, by arm, axis point and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from research.stats import Sample

Point = tuple[tuple[str, Any], ...]
"""An axis point as a sorted tuple of (key, value), so that it can be a dictionary key."""

VALUES, TIMES, COSTS, STOPWATCH = "values", "times", "costs", "stopwatch"
"""Kinds of a quantity: a number per seed; steps to an event, infinite where it never came; what is
the same for every seed; what one clock said of all seeds that were trained together."""


def point_key(point: Mapping[str, Any]) -> Point:
    """Returns the point as a sorted tuple; lists inside it become tuples."""
    return tuple(sorted((key, _hashable(value)) for key, value in point.items()))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Progress:
    """How the validation curves of an arm at a point went on at the end of training.

    Attributes:
      curve: name of the metric that they are of.
      own: whether that is what is measured; the loss stands in where it has no curve.
      gains: {seed: how much better it became in the last part of training}.
      learned: how much better the arm that learned most at the point became in all of it.
      problem: why there are no gains; "" where there are.
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
      name: how the report calls it.
      values: {(arm, point): {seed: value}}. A seed that diverged has the worst value there is, an
        infinity where there is none; a seed without a result is absent.
      points: the points that should exist, in the order of the axes.
      higher_is_better: direction, or None when neither is better.
      kind: VALUES, TIMES, COSTS or STOPWATCH.
      solved: value from which on a seed counts as having solved the task, or None. With it, claims
        are about the probability to solve.
      chance: what guessing reaches, or None.
      missing: {(arm, point): why seeds are absent}.
      choice: {(arm, point): standard deviation that the choice of tuned values adds to what is
        compared}; nothing where nothing was tuned, or where it cannot be told.
      progress: {(arm, point without slices): its curves}; nothing of what has no better way.
    """

    name: str
    values: Mapping[tuple[str, Point], Sample]
    points: Sequence[Mapping[str, Any]]
    higher_is_better: bool | None
    kind: str = VALUES
    solved: float | None = None
    chance: float | None = None
    missing: Mapping[tuple[str, Point], str] = field(default_factory=dict)
    choice: Mapping[tuple[str, Point], float] = field(default_factory=dict)
    progress: Mapping[tuple[str, Point], Progress] = field(default_factory=dict)

    def sample(self, arm: str, point: Mapping[str, Any]) -> Sample:
        """Returns {seed: value} of an arm at a point; {} when there is nothing."""
        return self.values.get((arm, point_key(point)), {})

    def reached(self, value: float, border: float) -> bool:
        """Returns whether a value is at least as good as `border`."""
        return value <= border if self.higher_is_better is False else value >= border
