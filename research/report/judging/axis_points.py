"""Groups, orders and selects the points of an experiment's axes."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from research import stats
from research.ablation.measure import point_key


def matches(point: Mapping[str, Any], at: Mapping[str, Any]) -> bool:
    """Returns whether a point agrees with a partial point."""
    wanted = dict(point_key(at))
    return all(dict(point_key(point)).get(key, math.nan) == v for key, v in wanted.items())


def along_axis(places: Sequence[Mapping], along: str) -> list[list[Mapping]]:
    """Groups the points that differ only in `along`, keeping their order."""
    groups: dict[tuple, list[Mapping]] = {}
    for point in places:
        rest = point_key({k: v for k, v in point.items() if k != along})
        groups.setdefault(rest, []).append(point)
    return list(groups.values())


def axis_positions(values: Sequence[Any]) -> list[float]:
    """Returns the positions of axis values: numbers as they are, ranges ("3-4") at their middle.

    If a value contains no number, or two values have the same position, their indices are used.
    """
    found = [_position(value) for value in values]
    known = [v for v in found if v is not None]
    if len(set(known)) == len(found):
        return known
    return [float(i) for i in range(len(found))]


def _position(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    # "1-2", "> 16", "32+": slice labels are ranges of a number.
    match = re.fullmatch(r"[^\d.]*(\d+\.?\d*)(?:\s*[-–:]\s*(\d+\.?\d*))?\+?", str(value))
    ends = [float(g) for g in match.groups() if g] if match else []
    return stats.mean(ends) if ends else None


def sorted_along(group: Sequence[Mapping], along: str) -> list[Mapping]:
    """Returns the points of a group in the order of their values of `along`."""
    positions = axis_positions([p.get(along) for p in group])
    return [p for _, p in sorted(zip(positions, group, strict=True), key=lambda pair: pair[0])]
