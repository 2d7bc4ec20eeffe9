"""A quantity of every reported run, by arm, axis point and seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research.stats import Sample

Point = tuple[tuple[str, Any], ...]
"""An axis point as a sorted tuple of (key, value), so that it can be a dictionary key."""


def point_key(point: Mapping[str, Any]) -> Point:
    """Returns the point as a sorted tuple; lists inside it become tuples."""
    return tuple(sorted((key, _hashable(value)) for key, value in point.items()))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Measure:
    """One quantity of every reported run.

    Attributes:
      name: how the report calls it.
      values: {(arm, point): {seed: value}}; a seed without a value is absent.
      points: the points that should exist, in the order of the axes.
      higher_is_better: direction, or None when neither is better.
    """

    name: str
    values: Mapping[tuple[str, Point], Sample]
    points: Sequence[Mapping[str, Any]]
    higher_is_better: bool | None
