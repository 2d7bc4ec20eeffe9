"""Computes the quantities behind a claim: what its test measures, where, and the claimed region.

The compared statistic depends on the measure. For an outcome with a `solved` threshold it is the
probability that a seed solves the task, because each seed either solves it or does not and the mean
of a few seeds says little. For steps to an event it is the order of the seeds, for costs the
numbers themselves, for times of a step their ratio in rounds in which the arms took turns, and for
anything else the mean over seeds. The error of a mean has the error of
the test items in it, where the runs kept their results (`items`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

from research import stats
from research.ablation.claims import (
    SLICE,
    Crossover,
    Direction,
    Equivalence,
    Test,
    Threshold,
    Trend,
)
from research.ablation.measure import (
    COSTS,
    STOPWATCH,
    TIMES,
    TURNS,
    VALUES,
    Measure,
    Point,
    point_key,
)
from research.report.formatting import count, number, point_text
from research.report.judging.axis_points import along_axis, axis_positions, sorted_along
from research.report.judging.quantity import Quantity
from research.stats import ALPHA, Proportion, ProportionDifference

ONE_SEED = "one seed is not evidence"
CHOICE_DEVIATIONS = 2.0
"""Allowance of tests and intervals for selection noise from tuning, in its standard deviations.
With this allowance and 3 tuning seeds, false verdicts on equal arms stay within their nominal rate
in simulations (benchmarks/tuning.py)."""
MOST_SEEDS = 64
"""Up to this number, the report says how many seeds a claim would need."""


def quantities(test: Test, data: Measure, places: Sequence[Mapping]) -> list[Quantity]:
    """Returns the quantities that a test measures at the given points."""
    match test:
        case Direction(a, b, margin):
            return [advantage(data, a, b, p, test.at, (margin, math.inf)) for p in places]
        case Equivalence(a, b, margin):
            return [_equivalence(data, a, b, p, test.at, margin) for p in places]
        case Threshold():
            return [_reaching(data, test, p) for p in places]
        case Trend():
            return [
                q for group in along_axis(places, test.along) for q in _steps(data, test, group)
            ]
        case Crossover():
            return [
                q for group in along_axis(places, test.along) for q in _sides(data, test, group)
            ]


def _label(point: Mapping, at: Mapping) -> str:
    return point_text({k: v for k, v in point.items() if k not in at})


def statistic_name(data: Measure) -> str:
    """Returns the name of the compared statistic, for example "mean accuracy"."""
    if data.solved is not None:
        return "probability to solve"
    names = {TIMES: data.name.replace("_", " "), COSTS: data.name, TURNS: "time of a step"}
    return names.get(data.kind, f"mean {data.name}")


def advantage(data: Measure, a: str, b: str, point: Mapping, at: Mapping, region) -> Quantity:
    """Returns by how much `a` is better than `b` at a point, in units of the compared statistic."""
    lower = data.higher_is_better is False and data.solved is None
    first, second = (b, a) if lower else (a, b)
    what = f"{statistic_name(data)} of {first} minus that of {second}"
    if data.kind == TIMES:
        what = f"share of pairs of seeds in which {a} comes first, above one half"
    elif data.kind == TURNS:
        what = _ratio(data, first, second)
    low, high = region
    return _difference(data, first, second, point, _label(point, at), what, low, high)


def difference(data: Measure, a: str, b: str, point: Mapping[str, Any]) -> Quantity:
    """Returns the compared statistic of `a` minus that of `b` at a point."""
    what = f"{statistic_name(data)} of {a} minus that of {b}"
    return _difference(data, a, b, point, "", what, 0.0, math.inf)


def _ratio(data: Measure, a: str, b: str) -> str:
    return f"{statistic_name(data)} of {a} over that of {b}, minus one"


def _equivalence(data, a, b, point, at, margin) -> Quantity:
    what = f"{statistic_name(data)} of {a} minus that of {b}"
    if data.kind == TURNS:
        what = _ratio(data, a, b)
    q = _difference(data, a, b, point, _label(point, at), what, -margin, margin)
    e = q.estimate
    if isinstance(e, ProportionDifference) and not q.obstacle:
        if min(e.k1 / e.n1, e.k2 / e.n2) < 0.5:
            obstacle = "an arm that fails in most seeds is no measure of what another one keeps"
            return replace(q, obstacle=obstacle)
    return q


def _difference(data, a, b, point, label, what, low, high, paired=False) -> Quantity:
    one, other = data.sample(a, point), data.sample(b, point)
    return _between(data, ((a, point, one), (b, point, other)), label, what, low, high, paired)


def _between(data: Measure, sides, label, what, low, high, paired) -> Quantity:
    """Returns the difference of two samples, each (arm, point, {seed: value}), as a quantity."""
    (a, _, one), (b, _, other) = sides
    n = (len(one), len(other))
    obstacle = next((text for s in sides if (text := _absent(data, *s))), "")
    estimate: Any = None
    items: list[stats.Component] = []
    if not obstacle:
        if data.solved is not None:
            k1, k2 = (sum(data.reached(v, data.solved) for v in s.values()) for s in (one, other))
            estimate = ProportionDifference(k1, n[0], k2, n[1])
            obstacle = _same_end(k1, k2, n, a, b, low, high) or _too_few(low, high, n)
        elif data.kind == COSTS:
            estimate = stats.Exact(stats.median(one.values()) - stats.median(other.values()))
        elif data.kind == TIMES:
            estimate = stats.RankDifference(tuple(one.values()), tuple(other.values()))
            if all(map(math.isinf, (*one.values(), *other.values()))):
                obstacle = "no seed of either ever got there"
            elif low > 0:
                obstacle = "for steps, only the order is tested, not the size of the difference"
        elif data.kind == TURNS:
            estimate = stats.mean_of([one[r] / other[r] - 1 for r in sorted(set(one) & set(other))])
            obstacle = _no_spread(data, sides, estimate)
        else:
            items = [] if paired else data.items.of_difference(*map(_place, sides))
            estimate = _means(one, other, paired, items)
            obstacle = _no_spread(data, sides, estimate) or _guessing(data, sides)
    first, second = ((arm, point) for arm, point, _ in sides)
    up, down = (first, second) if _more_is_better(data) else (second, first)
    able = data.kind == VALUES and data.higher_is_better is not None
    return Quantity(
        *(label, what, estimate, low, high, n),
        obstacle=obstacle,
        items=_numbers(items),
        allowance=_allowance(data, first, second),
        ends=_ends_of_difference(data),
        raised_by=up if able else None,
        lowered_by=down if able else None,
        counted_at=data.solved,
    )


def _ends_of_difference(data: Measure) -> tuple[float, float]:
    """Returns the lowest and the highest possible difference of the compared statistic."""
    if data.solved is not None:
        return -1.0, 1.0
    low, high = data.ends
    return low - high, high - low


def _more_is_better(data: Measure) -> bool:
    """Returns whether a larger statistic is better; more seeds that solve a task always are."""
    return data.solved is not None or data.higher_is_better is True


def _allowance(data: Measure, *places: tuple[str, Mapping]) -> float:
    """Returns the allowance for selection noise from tuning at one or two (arm, point) places."""
    found = {place: data.choice.get(place, 0.0) for a, p in places if (place := (a, point_key(p)))}
    return CHOICE_DEVIATIONS * math.hypot(*found.values())


def _place(side: tuple[str, Mapping[str, Any], stats.Sample]) -> tuple[str, Point]:
    arm, point, _ = side
    return arm, point_key(point)


def _numbers(items: Sequence[stats.Component]) -> tuple[int, ...]:
    """Returns the numbers of test items behind the components of an error."""
    return tuple(round(component.df) + 1 for component in items)


def _means(
    one: stats.Sample, other: stats.Sample, paired: bool, items: Sequence[stats.Component]
) -> stats.StudentT:
    shared = sorted(set(one) & set(other))
    if paired and len(shared) > 1:
        scale = max(abs(v) for v in (*one.values(), *other.values()))
        return stats.mean_of([one[s] - other[s] for s in shared], scale)
    return stats.welch(one.values(), other.values(), items)


def _absent(data: Measure, arm: str, point: Mapping, sample: stats.Sample) -> str:
    """Returns why a sample cannot be judged; "" if it can."""
    if data.kind == STOPWATCH:
        return (
            "one clock timed all seeds of an arm at once; arms would have to take turns, several "
            "times, to be compared by it"
        )
    if missing := data.missing.get((arm, point_key(point))):
        return missing
    if not sample:
        return f"there are no finished runs of {arm}"
    if len(sample) == 1 and data.kind == TURNS:
        return "one round of measurements is not evidence"
    if len(sample) == 1 and data.kind != COSTS:
        return ONE_SEED
    return ""


def _no_spread(data: Measure, sides, estimate: stats.StudentT) -> str:
    for arm, _, sample in sides:
        # Infinite, or NaN if the metric has no direction.
        lost = sum(not math.isfinite(value) for value in sample.values())
        if lost:
            return f"{count(lost, 'seed')} of {arm} diverged, and {data.name} has no worst value"
    if estimate.error == 0:
        values = "rounds" if data.kind == TURNS else "seeds"
        return f"all {values} are equal, which says nothing of the spread of others"
    return ""


def _guessing(data: Measure, sides) -> str:
    """Returns a text if neither arm is shown to be better than chance; "" otherwise."""
    if data.chance is None:
        return ""
    sign = -1 if data.higher_is_better is False else 1
    for side in sides:
        items = data.items.of_mean(_place(side))
        found = stats.mean_of([sign * v for v in side[2].values()], items=items)
        if found.p_above(sign * data.chance) <= ALPHA / 2 or (
            found.error == 0 and found.estimate > sign * data.chance
        ):
            return ""
    return f"neither arm is shown to be better than guessing ({number(data.chance)})"


def _same_end(k1: int, k2: int, n: tuple[int, int], a: str, b: str, low: float, high: float) -> str:
    if k1 == k2 == 0:
        return f"no seed of {a} or {b} solves the task"
    if (k1, k2) == n and not (math.isfinite(low) and math.isfinite(high)):
        return f"every seed of {a} and {b} solves the task, so that neither can be better"
    return ""


@lru_cache
def _too_few(low: float, high: float, n: tuple[int, int]) -> str:
    """Returns a text if no possible result of so few seeds could decide; "" if one could."""

    def decides(n1: int, n2: int) -> bool:
        if math.isfinite(low) and math.isfinite(high):
            best = ProportionDifference(n1, n1, n2, n2)
            return 2 * max(best.p_above(low), best.p_below(high)) <= ALPHA
        if math.isfinite(low):
            return 2 * ProportionDifference(n1, n1, 0, n2).p_above(low) <= ALPHA
        return 2 * ProportionDifference(0, n1, n2, n2).p_below(high) <= ALPHA

    if decides(*n):
        return ""
    enough = next((m for m in range(min(n) + 1, MOST_SEEDS) if decides(m, m)), None)
    needed = f"at least {enough}" if enough else f"more than {MOST_SEEDS}"
    return f"{count(min(n), 'seed')} of an arm cannot show it whatever they do: it takes {needed}"


def _reaching(data: Measure, test: Threshold, point: Mapping) -> Quantity:
    """Returns the quantity of a threshold test: a mean, a cost, or a share of seeds."""
    sample, label = data.sample(test.arm, point), _label(point, test.at)
    obstacle = _absent(data, test.arm, point, sample)
    if data.kind == VALUES and (data.solved is not None or test.share is not None):
        return _share(data, test, point, sample, obstacle)
    low = -math.inf if test.at_least is None else test.at_least
    high = math.inf if test.at_most is None else test.at_most
    what, estimate = f"{statistic_name(data)} of {test.arm}", None
    items: list[stats.Component] = []
    if data.kind == COSTS:
        # The claim allows the border itself, but the exact test is strict: widen by one float.
        low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
        estimate = stats.Exact(stats.median(sample.values())) if sample else None
    elif data.kind == TIMES:
        obstacle = obstacle or "for steps, only the order of two arms is tested"
    elif not obstacle:
        items = data.items.of_mean((test.arm, point_key(point)))
        estimate = stats.mean_of(sample.values(), caution=stats.CAUTION, items=items)
        obstacle = _no_spread(data, ((test.arm, point, sample),), estimate)
    side = (test.arm, point) if data.kind == VALUES else None
    return Quantity(
        *(label, what, estimate, low, high, (len(sample),)),
        obstacle=obstacle,
        items=_numbers(items),
        allowance=_allowance(data, (test.arm, point)),
        ends=data.ends,
        raised_by=side if data.higher_is_better else None,
        lowered_by=side if data.higher_is_better is False else None,
    )


def _share(data: Measure, test: Threshold, point: Mapping, sample, obstacle: str) -> Quantity:
    at_least, share = test.at_least is not None, 0.5 if test.share is None else test.share
    border = test.at_least if test.at_least is not None else test.at_most
    assert border is not None
    what = f"share of seeds of {test.arm} with {data.name} {'≥' if at_least else '≤'} {border:g}"
    n, estimate = len(sample), None
    if not obstacle:
        k = sum(v >= border if at_least else v <= border for v in sample.values())
        estimate = Proportion(k, n)
        if k == n and share**n > ALPHA:
            needed = next(m for m in range(n, 10_000) if share**m <= ALPHA)
            obstacle = (
                f"{count(n, 'seed')} cannot show it whatever they do: it takes at least {needed}"
            )
    side, higher = (test.arm, point), data.higher_is_better
    return Quantity(
        *(_label(point, test.at), what, estimate, share, math.inf, (n,), True, obstacle),
        allowance=_allowance(data, (test.arm, point)),
        ends=(0.0, 1.0),
        # A better arm has more seeds beyond the border in the better direction, so it raises a
        # share counted in that direction and lowers one counted in the other.
        raised_by=side if higher == at_least else None,
        lowered_by=side if higher is (not at_least) else None,
        counted_at=border,
    )


def _steps(data: Measure, test: Trend, group: Sequence[Mapping]) -> list[Quantity]:
    """Returns the changes along the axis that a trend is tested on.

    Fitting a line instead would call 1, .3, 1 flat and .2, .6, .9, .5 rising. "flat" compares every
    pair of axis values; "increasing" and "decreasing" compare neighbouring values and, if there is
    a margin, the last value with the first.
    """
    ordered = sorted_along(group, test.along)
    rest = {k: v for k, v in group[0].items() if k != test.along}
    name, where = test.along.rsplit(".", 1)[-1], _label(rest, test.at)
    # Slices come from the same runs, so the seeds are paired.
    paired = test.along == SLICE

    def change(p: Mapping, q: Mapping, low: float, high: float) -> Quantity:
        ends = f"{name} {p.get(test.along)} to {q.get(test.along)}"
        label = f"{where}, {ends}" if where else ends
        sides = (
            (test.arm, q, data.sample(test.arm, q)),
            (test.arm, p, data.sample(test.arm, p)),
        )
        what = f"{'relative ' if data.kind == TURNS else ''}change of the {statistic_name(data)}"
        what += f" of {test.arm}"
        return _between(data, sides, label, what, low, high, paired)

    if test.direction == "flat":
        return [change(p, q, -test.margin, test.margin) for p, q in combinations(ordered, 2)]
    low, high = (0.0, math.inf) if test.direction == "increasing" else (-math.inf, 0.0)
    found = [change(p, q, low, high) for p, q in pairwise(ordered)]
    if test.margin:
        ends = (test.margin, high) if test.direction == "increasing" else (low, -test.margin)
        found.append(change(ordered[0], ordered[-1], *ends))
    return found


def _sides(data: Measure, test: Crossover, group: Sequence[Mapping]) -> list[Quantity]:
    """Returns the advantages of a over b along the axis, each with its claimed sign as region."""
    positions = axis_positions([p.get(test.along) for p in group])
    sides = []
    for x, point in zip(sorted(positions), sorted_along(group, test.along), strict=True):
        first, last = x == min(positions), x == max(positions)
        before = first if test.value is None else x < test.value
        after = last if test.value is None else x > test.value
        if before or after:
            region = (0.0, math.inf) if before else (-math.inf, 0.0)
            sides.append(advantage(data, test.a, test.b, point, test.at, region))
    return sides
