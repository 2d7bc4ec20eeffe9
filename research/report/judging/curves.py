"""Measures on validation curves: late gain, total improvement and rise time."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from research import stats
from research.ablation.measure import Progress

PART = 0.25
"""Last fraction of training, in which a curve has to be flat."""
FEWEST = 3
"""Minimum number of evaluations in that part for estimating a slope."""


def gain(curve: Sequence[tuple[float, float]]) -> float | None:
    """Returns the rise of a curve of (step, value) pairs over the last part of training.

    Returns None if that part has fewer than `FEWEST` values.
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
    """Returns {arm: late progress of its validation curves} for the arms at one point.

    If a metric has no curve, that of the metric it is a slice of is used instead, or the loss.

    Args:
      rows: {arm: {seed: rows of metrics.jsonl}} of the runs that were trained to the end.
      metric: name of the metric.
      higher: whether a higher value of it is better.
    """
    names = dict.fromkeys((metric, metric.partition("_by_")[0], "loss"))
    found = {}
    for arm, own in rows.items():
        curve = next(
            (n for n in names if any(validation_curve(r, n) for r in own.values())), metric
        )
        up = higher if curve == metric or curve != "loss" else False
        sign = 1 if up else -1
        gains = late_gains({seed: validation_curve(r, curve) for seed, r in own.items()}, sign)
        most = max(
            mean_improvement([validation_curve(r, curve) for r in a.values()], sign)
            for a in rows.values()
        )
        found[arm] = Progress(curve, curve == metric, gains, most, _problem(gains, own, curve))
    return found


def _problem(gains: Mapping, rows: Mapping[int, Sequence], curve: str) -> str:
    if gains:
        return ""
    if not any(validation_curve(r, curve) for r in rows.values()):
        return f"no curve of {curve} or of the loss"
    return f"its curve has fewer than {FEWEST} evaluations in the last quarter of training"


def late_gains(curves: Mapping[int, Sequence[tuple[float, float]]], sign: int) -> dict[int, float]:
    """Returns {seed: late gain}, positive for an improvement; seeds without one are absent."""
    found = {seed: gain(curve) for seed, curve in curves.items()}
    return {seed: sign * value for seed, value in found.items() if value is not None}


def mean_improvement(curves: Sequence[Sequence[tuple[float, float]]], sign: int) -> float:
    """Returns the mean improvement of curves from first to best value; 0 without curves."""
    ways = [max(sign * v for _, v in curve) - sign * curve[0][1] for curve in curves if curve]
    return stats.mean(ways) if ways else 0.0


def validation_curve(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    """Returns the validation curve of a metric as (step, value) pairs with finite values."""
    found = [(row["step"], row.get(f"validation/{metric}")) for row in rows]
    return [
        (float(step), float(value))
        for step, value in found
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def rise(
    curve: Sequence[tuple[float, float]], border: float, between: tuple[float, float]
) -> float | None:
    """Returns the rise time of a curve as a fraction of training; None if it never arrives.

    Args:
      curve: (step, value) pairs; the first value is on the near side of the border.
      border: value at which the rise is complete.
      between: fractions of the rise between which time is measured, such as .2 and .8; values
        between evaluations are interpolated linearly.
    """
    begin = curve[0][1]
    way = [(step, (value - begin) / (border - begin)) for step, value in curve]
    if max(part for _, part in way) < 1:
        return None
    low, high = (_first_passed(way, part) for part in between)
    return (high - low) / curve[-1][0]


def _first_passed(way: Sequence[tuple[float, float]], part: float) -> float:
    """Returns the interpolated step at which a curve that starts at 0 first reaches `part`."""
    after = next(i for i, (_, value) in enumerate(way) if value >= part)
    (step0, value0), (step1, value1) = way[after - 1], way[after]
    return step0 + (step1 - step0) * (part - value0) / (value1 - value0)
