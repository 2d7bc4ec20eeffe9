"""Where a sample lies: means, medians and their intervals.

Samples without variance (every seed at exactly 1.0) are ordinary here: tasks that are solved are
solved exactly. Noise of float32, in which models compute, counts as no variance.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtrit

ALPHA = 0.05
"""Two-sided error rate of tests and intervals: intervals are 95 % intervals."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, in the units of the sample.

    Attributes:
      mean: the estimate.
      low, high: ends of the interval; NaN when one seed gives no interval.
      sd: sample standard deviation (divisor n - 1); NaN for n = 1.
      n: number of seeds.
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int


def mean(values: Iterable[float]) -> float:
    """Returns the arithmetic mean, exactly rounded; NaN of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def deviation(values: Iterable[float]) -> float:
    """Returns the sample standard deviation (divisor n - 1); NaN for fewer than two values.

    Differences within floating-point noise of the values count as none: 0.3 - 0.2 and 0.4 - 0.3
    are the same improvement, and a t statistic of 1e15 would be an artefact.
    """
    values = list(values)
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    sd = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
    return sd if sd > 1e-12 * max(1e-300, *(abs(v) for v in values)) else 0.0


def t_quantile(probability: float, df: float) -> float:
    """Returns the quantile of Student's t distribution."""
    return float(stdtrit(df, probability))


def t_interval(values: Iterable[float], alpha: float = ALPHA) -> Interval:
    """Returns the mean with its two-sided Student-t interval of level 1 - alpha."""
    values = list(values)
    n, centre, sd = len(values), mean(values), deviation(values)
    if n < 2:
        return Interval(centre, math.nan, math.nan, math.nan, n)
    half = t_quantile(1 - alpha / 2, n - 1) * sd / math.sqrt(n)
    return Interval(centre, centre - half, centre + half, sd, n)


def median(values: Iterable[float]) -> float:
    """Returns the median; the mean of the middle two for an even count; NaN of nothing."""
    values = sorted(values)
    if not values:
        return math.nan
    low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
    return low if low == high else (low + high) / 2


def median_interval(values: Iterable[float], alpha: float = ALPHA) -> tuple[float, float]:
    """Returns the order-statistic interval of the median, of level at least 1 - alpha.

    The interval between the k-th smallest and k-th largest value misses the median with
    probability 2 P(Binomial(n, 1/2) < k) (Conover, Practical Nonparametric Statistics, 3.2). With
    fewer than six seeds even the extremes miss it more often than 5 %: then both ends are NaN.
    """
    values = sorted(values)
    n, k, missed = len(values), 0, 0.0
    while k < n // 2:
        missed += 2 * math.comb(n, k) / 2**n
        if missed > alpha:
            break
        k += 1
    return (values[k - 1], values[n - k]) if k else (math.nan, math.nan)
