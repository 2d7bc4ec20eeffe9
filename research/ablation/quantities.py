"""The numbers a claim speaks of: what each test measures, where, and the region it claims.

Kinds of quantity: the mean of an arm, the difference of two arms, and the change of an arm along an
axis. All are estimates over seeds with a standard error and degrees of freedom, so that
`research.ablation.verdicts` treats them alike.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from research import stats
from research.ablation.claims import Crossover, Direction, Equivalence, Test, Threshold, Trend
from research.ablation.measure import Measure, point_key
from research.ablation.wording import point_text


@dataclass(frozen=True)
class Quantity:
    """One number a claim speaks of.

    Attributes:
      label: where it is measured, "" when there is only one place.
      what: what it is, for example "advantage of additive over none".
      estimate, error, df: the number, its standard error and degrees of freedom; NaN error with
        fewer than two seeds.
      n: number of seeds; 0 when there are no runs.
      low, high: the claimed region.
      strict: whether the ends of the region are outside it.
    """

    label: str
    what: str
    estimate: float
    error: float
    df: float
    n: int
    low: float
    high: float
    strict: bool = False


def matches(point: Mapping[str, Any], at: Mapping[str, Any]) -> bool:
    """Returns whether the point agrees with the partial point."""
    wanted = dict(point_key(at))
    return all(dict(point_key(point)).get(key, math.nan) == v for key, v in wanted.items())


def quantities(test: Test, data: Measure, places: Sequence[Mapping]) -> list[Quantity]:
    """Returns the quantities of a test at the given points."""
    inf = math.inf
    match test:
        case Direction(a, b, margin):
            what = f"advantage of {a} over {b}"
            region = (margin, inf, margin == 0)
            return [difference(data, a, b, p, test.at, what, region) for p in places]
        case Equivalence(a, b, margin):
            region = (-margin, margin, True)
            return [
                difference(
                    data, a, b, p, test.at, f"difference {a} minus {b}", region, signed=False
                )
                for p in places
            ]
        case Threshold(arm, at_least, at_most):
            low = -inf if at_least is None else at_least
            high = inf if at_most is None else at_most
            return [_mean(data, arm, p, test.at, low, high) for p in places]
        case Trend():
            return [_change(data, test, group) for group in along_axis(places, test.along)]
        case Crossover():
            groups = along_axis(places, test.along)
            return [q for group in groups for q in _sides(data, test, group)]


def _label(point: Mapping, at: Mapping) -> str:
    return point_text({k: v for k, v in point.items() if k not in at})


def _mean(data, arm, point, at, low, high) -> Quantity:
    sample = data.values.get((arm, point_key(point)), {})
    i = stats.t_interval(sample.values())
    error = i.sd / math.sqrt(i.n) if i.n else math.nan
    return Quantity(_label(point, at), f"mean of {arm}", i.mean, error, i.n - 1.0, i.n, low, high)


def difference(data, a, b, point, at, what, region, signed=True) -> Quantity:
    """Returns a - b at a point; turned so that more is better when `signed`."""
    key = point_key(point)
    sample_a, sample_b = data.values.get((a, key), {}), data.values.get((b, key), {})
    c = stats.compare(sample_a, sample_b)
    sign = -1.0 if signed and data.higher_is_better is False else 1.0
    low, high, strict = region
    return Quantity(
        _label(point, at),
        what,
        sign * c.difference.mean,
        c.error,
        c.df,
        c.difference.n,
        low,
        high,
        strict,
    )


def along_axis(places: Sequence[Mapping], along: str) -> list[list[Mapping]]:
    """Groups points that differ only in `along`, in the order they come."""
    groups: dict[tuple, list[Mapping]] = {}
    for point in places:
        rest = point_key({k: v for k, v in point.items() if k != along})
        groups.setdefault(rest, []).append(point)
    return list(groups.values())


def axis_positions(values: Sequence[Any]) -> list[float]:
    """Returns where axis values lie: numbers as they are, ranges ("3-4") at their middle.

    When one of them holds no number, or two hold the same, all count by their position.
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


def _change(data: Measure, test: Trend, group: Sequence[Mapping]) -> Quantity:
    """The change of a least-squares line from the first to the last axis value, over seeds."""
    positions = axis_positions([p.get(test.along) for p in group])
    if test.scale == "log" and min(positions) > 0:
        positions = [math.log(x) for x in positions]
    seeds: dict[int, list[tuple[float, float]]] = {}
    for x, point in zip(positions, group, strict=True):
        for seed, y in data.values.get((test.arm, point_key(point)), {}).items():
            seeds.setdefault(seed, []).append((x, y))
    # A seed that lacks a point would mix the trend with what is missing.
    full = [pairs for pairs in seeds.values() if len(pairs) == len(group) > 1]
    extent = max(positions) - min(positions)
    i = stats.t_interval([slope(pairs) * extent for pairs in full])
    low, high = {
        "increasing": (test.margin, math.inf),
        "decreasing": (-math.inf, -test.margin),
        "flat": (-test.margin, test.margin),
    }[test.direction]
    ends = f"{group[0].get(test.along)} to {group[-1].get(test.along)}"
    return Quantity(
        _label({k: v for k, v in group[0].items() if k != test.along}, test.at),
        f"change of {test.arm} from {test.along.rsplit('.', 1)[-1]} {ends}",
        i.mean,
        i.sd / math.sqrt(i.n) if i.n else math.nan,
        i.n - 1.0,
        i.n,
        low,
        high,
        strict=test.direction == "flat" or test.margin == 0,
    )


def slope(pairs: Sequence[tuple[float, float]]) -> float:
    """Returns the least-squares slope of (x, y) pairs."""
    x0, y0 = stats.mean(x for x, _ in pairs), stats.mean(y for _, y in pairs)
    spread = math.fsum((x - x0) ** 2 for x, _ in pairs)
    return math.fsum((x - x0) * (y - y0) for x, y in pairs) / spread


def _sides(data: Measure, test: Crossover, group: Sequence[Mapping]) -> list[Quantity]:
    """The advantage of a over b along the axis, each with the side the claim wants it on."""
    positions = axis_positions([p.get(test.along) for p in group])
    ordered = [p for _, p in sorted(zip(positions, group, strict=True), key=lambda pair: pair[0])]
    what = f"advantage of {test.a} over {test.b}"
    sides = []
    for x, point in zip(sorted(positions), ordered, strict=True):
        first, last = x == min(positions), x == max(positions)
        before = first if test.value is None else x < test.value
        after = last if test.value is None else x > test.value
        if before or after:
            region = (0.0, math.inf, True) if before else (-math.inf, 0.0, True)
            sides.append(difference(data, test.a, test.b, point, test.at, what, region))
    return sides
