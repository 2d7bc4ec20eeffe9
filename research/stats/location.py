"""Location and spread of a sample: mean, median, extremes, standard deviation."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtrit

ALPHA = 0.05
"""Default two-sided level of tests; intervals have level 1 - ALPHA, that is 95 %."""

FLOAT32_NOISE = 1e-6
"""Relative difference below which values from float32 models count as equal (about 8 ulps)."""


@dataclass(frozen=True)
class Summary:
    """Descriptive statistics of a sample; they claim nothing about seeds that were not run.

    Attributes:
      mean: the mean; NaN for an empty sample.
      low, high: smallest and largest value.
      sd: standard deviation (divisor n - 1); NaN for n = 1.
      n: number of values.
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int


def summary(values: Iterable[float]) -> Summary:
    """Returns the mean, extremes and standard deviation of a sample."""
    values = list(values)
    ends = (min(values), max(values)) if values else (math.nan, math.nan)
    return Summary(mean(values), *ends, deviation(values), len(values))


def mean(values: Iterable[float]) -> float:
    """Returns the arithmetic mean, from an exactly rounded sum; NaN for no values."""
    values = list(values)
    if any(map(math.isinf, values)):
        return sum(values) / len(values)
    return math.fsum(values) / len(values) if values else math.nan


def deviation(values: Iterable[float], scale: float = 0.0) -> float:
    """Returns the standard deviation (divisor n - 1); NaN for fewer than two finite values.

    Args:
      values: the sample.
      scale: magnitude of the numbers that the values were computed from; at least that of the
        values themselves is used.

    Returns 0 if the values differ by no more than float32 noise at that scale, because a t
    statistic of 1e7 would be an artefact of rounding.
    """
    values = list(values)
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    if not math.isfinite(centre):
        return math.nan
    sd = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
    return sd if sd > FLOAT32_NOISE * max(scale, *map(abs, values)) else 0.0


def t_quantile(probability: float, df: float) -> float:
    """Returns the quantile of Student's t distribution."""
    return float(stdtrit(df, probability))


def median(values: Iterable[float]) -> float:
    """Returns the median (mean of the middle two for an even count); NaN for no values."""
    values = sorted(values)
    if not values:
        return math.nan
    low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
    return low if low == high else (low + high) / 2
