"""How learning curves end: what a run still gained in the last part of its training."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research import stats
from research.ablation.measure import Progress

PART = 0.25
"""The part at the end of training in which a curve has to be flat."""
FEWEST = 3
"""Evaluations in that part that a slope takes at least."""


def gain(curve: Sequence[tuple[float, float]]) -> float | None:
    """Returns what a curve of (step, value) rose by in the last part of training.

    None with fewer than `FEWEST` values there, or of steps that do not differ.
    """
    last = curve[-1][0] if curve else 0.0
    end = [(step, value) for step, value in curve if step >= (1 - PART) * last]
    if len(end) < FEWEST:
        return None
    steps, values = np.array(end).T
    centred = steps - steps.mean()
    return float(centred @ values / (centred @ centred)) * PART * last


def progress(
    rows: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]], metric: str, higher: bool
) -> dict[str, Progress]:
    """Returns {arm: how its curves ended}, of the arms at one point.

    What has no curve goes the way of the metric that it is a slice of, or of the loss.

    Args:
      rows: {arm: {seed: rows of metrics.jsonl}} of the runs that were trained to their end.
      metric: whose curve is asked for.
      higher: whether higher is better of it.
    """
    names = dict.fromkeys((metric, metric.partition("_by_")[0], "loss"))
    found = {}
    for arm, own in rows.items():
        curve = next((n for n in names if any(curve_of(r, n) for r in own.values())), metric)
        up = higher if curve == metric or curve != "loss" else False
        sign = 1 if up else -1
        gains = gains_of({seed: curve_of(r, curve) for seed, r in own.items()}, sign)
        most = max(learned([curve_of(r, curve) for r in a.values()], sign) for a in rows.values())
        found[arm] = Progress(curve, curve == metric, gains, most, _problem(gains, own, curve))
    return found


def _problem(gains: Mapping, rows: Mapping[int, Sequence], curve: str) -> str:
    if gains:
        return ""
    if not any(curve_of(r, curve) for r in rows.values()):
        return f"no curve of {curve} or of the loss"
    return f"its curve has fewer than {FEWEST} evaluations in the last quarter of training"


def gains_of(curves: Mapping[int, Sequence[tuple[float, float]]], sign: int) -> dict[int, float]:
    """Returns {seed: gain}, where a gain is for the better, of the curves that tell one."""
    found = {seed: gain(curve) for seed, curve in curves.items()}
    return {seed: sign * value for seed, value in found.items() if value is not None}


def learned(curves: Sequence[Sequence[tuple[float, float]]], sign: int) -> float:
    """Returns the mean way of curves from their first value to their best; 0 of none."""
    ways = [max(sign * v for _, v in curve) - sign * curve[0][1] for curve in curves if curve]
    return stats.mean(ways) if ways else 0.0


def curve_of(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """Returns (step, value) of the evaluations on validation that have a finite number."""
    found = [(row["step"], row.get(f"validation/{metric}")) for row in rows]
    return [
        (float(step), float(value))
        for step, value in found
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def rise(
    curve: Sequence[tuple[float, float]], border: float, between: tuple[float, float]
) -> float | None:
    """Returns the part of training between two parts of the way to a border; None if not reached.

    Args:
      curve: (step, value), which begins on the other side of the border.
      border: value at the end of the way.
      between: the two parts of the way, such as .2 and .8; between evaluations it is linear.
    """
    begin = curve[0][1]
    way = [(step, (value - begin) / (border - begin)) for step, value in curve]
    if max(part for _, part in way) < 1:
        return None
    low, high = (_first_passed(way, part) for part in between)
    return (high - low) / curve[-1][0]


def _first_passed(way: Sequence[tuple[float, float]], part: float) -> float:
    """Returns the step at which a curve from 0 to 1 first reaches `part`, linear in between."""
    after = next(i for i, (_, value) in enumerate(way) if value >= part)
    (step0, value0), (step1, value1) = way[after - 1], way[after]
    return step0 + (step1 - step0) * (part - value0) / (value1 - value0)
