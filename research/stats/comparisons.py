"""Differences of arms over seeds: t tests, equivalence, and the effects that n seeds can show."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import nctdtr, stdtr

from research.stats.location import ALPHA, Interval, deviation, mean, t_interval, t_quantile

POWER = 0.8
"""Power at which the minimum detectable effect is stated."""

Sample = Mapping[int, float]
"""{seed: value} of one arm at one point."""


@dataclass(frozen=True)
class Comparison:
    """The difference of two arms, a - b, and its test.

    Attributes:
      difference: mean difference with its two-sided interval.
      p: two-sided p-value of "no difference"; NaN when there are too few seeds.
      error: standard error of the difference.
      df: degrees of freedom of the t distribution.
      method: "paired", "welch" or "none" (too few seeds).
    """

    difference: Interval
    p: float
    error: float
    df: float
    method: str


def compare(a: Sample, b: Sample, alpha: float = ALPHA) -> Comparison:
    """Compares two arms: paired t test on the shared seeds, Welch's when fewer than two are shared.

    The same seed gives both arms the same data in the same order, so pairing removes that part of
    the noise. Seeds that only one arm has are left out of a paired comparison.
    """
    shared = sorted(set(a) & set(b))
    if len(shared) >= 2:
        difference = t_interval([a[s] - b[s] for s in shared], alpha)
        error, df = difference.sd / math.sqrt(difference.n), difference.n - 1.0
        p = p_value(difference.mean, 0.0, error, df)
        return Comparison(difference, p, error, df, "paired")
    n = min(len(a), len(b))
    centre = mean(a.values()) - mean(b.values())
    if n < 2:
        return Comparison(
            Interval(centre, math.nan, math.nan, math.nan, n), math.nan, math.nan, math.nan, "none"
        )
    va, vb = deviation(a.values()) ** 2 / len(a), deviation(b.values()) ** 2 / len(b)
    error = math.sqrt(va + vb)
    # Welch-Satterthwaite; without any variance the degrees of freedom do not matter.
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)) if error else n - 1.0
    half = t_quantile(1 - alpha / 2, df) * error
    difference = Interval(centre, centre - half, centre + half, error * math.sqrt(n), n)
    return Comparison(difference, p_value(centre, 0.0, error, df), error, df, "welch")


def p_value(estimate: float, hypothesis: float, error: float, df: float) -> float:
    """Returns the two-sided p-value of "the true value is `hypothesis`".

    Without variance it is the limit: 1 when the estimate is the hypothesis, else 0.
    """
    if math.isnan(error):
        return math.nan
    distance = abs(estimate - hypothesis)
    if error == 0:
        return 1.0 if distance <= 1e-12 * max(abs(estimate), abs(hypothesis)) else 0.0
    return min(1.0, 2 * float(stdtr(df, -distance / error)))


def tost(estimate: float, margin: float, error: float, df: float) -> float:
    """Returns the p-value of two one-sided tests of |true value| < margin (Schuirmann 1987).

    It is below alpha exactly when the two-sided interval of level 1 - 2 alpha lies within the
    margin.
    """
    if math.isnan(error):
        return math.nan
    if error == 0:
        return 0.0 if abs(estimate) < margin else 1.0
    return float(stdtr(df, -(margin - abs(estimate)) / error))


def minimum_detectable_effect(
    error: float, df: float, alpha: float = ALPHA, power: float = POWER
) -> float:
    """Returns the true difference a two-sided t test finds with probability `power`.

    Args:
      error: standard error of the difference, in units of the outcome.
      df: its degrees of freedom.

    Solved on the noncentral t distribution (Cohen 1988, ch. 2). 0 without variance, NaN when there
    are too few seeds.
    """
    if math.isnan(error) or error == 0:
        return error
    critical = t_quantile(1 - alpha / 2, df)

    def found(shift: float) -> float:
        # Rejecting on the wrong side is left out: at this power it has a probability below 1e-6,
        # and scipy returns NaN for it.
        return 1 - float(nctdtr(df, shift, critical))

    low, high = 0.0, critical
    while found(high) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high * error
