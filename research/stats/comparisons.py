"""Estimates with a standard error, and times that may be censored.

The estimates of this package answer the same three questions, so that verdicts treat them alike:
`p_above(border)` and `p_below(border)` are one-sided p-values of "the true value is not above
(below) the border", and `interval(alpha)` is the two-sided interval of level 1 - alpha.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import nctdtr, stdtr
from scipy.stats import permutation_test, rankdata

from research.stats.location import ALPHA, deviation, mean, t_quantile

POWER = 0.8
"""Power at which the minimum detectable effect is stated."""

CAUTION = 30.0
"""By how much the level of a t test of a single mean is divided.

On skewed outcomes of 3 to 20 seeds (lognormal, beta(8, 1/2)) its one-sided errors are up to 45
times as frequent as it says. Differences of two arms do not need it: skew on both sides cancels.
"""

PERMUTATIONS = 9999
"""Random permutations of a rank test with more permutations than that; with fewer it is exact."""

Sample = Mapping[int, float]
"""{seed: value} of one arm at one point."""


@dataclass(frozen=True)
class StudentT:
    """A number with a standard error whose ratio follows Student's t distribution.

    Attributes:
      estimate: the number.
      error: its standard error; NaN with too few seeds, 0 when the seeds do not differ.
      df: degrees of freedom.
      caution: p-values are multiplied by it, and intervals are as much wider.
    """

    estimate: float
    error: float
    df: float
    caution: float = 1.0

    def p_above(self, border: float) -> float:
        """Returns the one-sided p-value of "the true value is at most `border`"."""
        return self._tail(self.estimate - border)

    def p_below(self, border: float) -> float:
        """Returns the one-sided p-value of "the true value is at least `border`"."""
        return self._tail(border - self.estimate)

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Returns the two-sided interval of level 1 - alpha; NaN without a standard error."""
        if not self.error > 0:
            return math.nan, math.nan
        half = t_quantile(1 - alpha / self.caution / 2, self.df) * self.error
        return self.estimate - half, self.estimate + half

    def _tail(self, distance: float) -> float:
        # Seeds that do not differ say nothing of the next one.
        if not self.error > 0:
            return 1.0
        return min(1.0, self.caution * float(stdtr(self.df, -distance / self.error)))


@dataclass(frozen=True)
class Exact:
    """A number without any chance in it, such as the parameters of an arm."""

    estimate: float

    def p_above(self, border: float) -> float:
        """Returns 0 when the number is above `border`, else 1."""
        return 0.0 if self.estimate > border else 1.0

    def p_below(self, border: float) -> float:
        """Returns 0 when the number is below `border`, else 1."""
        return 0.0 if self.estimate < border else 1.0

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Returns the number itself, twice."""
        return self.estimate, self.estimate


@dataclass(frozen=True)
class RankDifference:
    """Whether the values of one arm tend to be larger than those of another.

    For times to an event: a seed that never got there counts as infinity, later than all that did,
    which is right when all were watched for as long (Gehan 1965, Biometrika 52, 203-223). The
    estimate is the probability that a seed of `a` has the larger value, ties counting half, minus
    one half; the test is the permutation test of the Mann-Whitney statistic.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def estimate(self) -> float:
        a, b = np.array(self.a)[:, None], np.array(self.b)
        return float(((a > b) + 0.5 * (a == b)).mean() - 0.5)

    def p_above(self, border: float) -> float:
        """Returns the one-sided p-value of "`a` does not tend to be larger"; 1 if border > 0."""
        return self._p("greater") if border <= 0 else 1.0

    def p_below(self, border: float) -> float:
        """Returns the one-sided p-value of "`a` does not tend to be smaller"; 1 if border < 0."""
        return self._p("less") if border >= 0 else 1.0

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Returns NaN: the test has no interval."""
        return math.nan, math.nan

    def _p(self, alternative: str) -> float:
        # Mean ranks order permutations as the Mann-Whitney statistic does, and are quick.
        ranks = rankdata((*self.a, *self.b))
        found = permutation_test(
            (ranks[: len(self.a)], ranks[len(self.a) :]),
            lambda a, b, axis: a.mean(axis) - b.mean(axis),
            permutation_type="independent",
            vectorized=True,
            n_resamples=PERMUTATIONS,
            alternative=alternative,
            rng=np.random.default_rng(0),
        )
        return float(found.pvalue)


Estimate = StudentT | Exact | RankDifference


def mean_of(values: Iterable[float], scale: float = 0.0, caution: float = 1.0) -> StudentT:
    """Returns the mean with its standard error.

    Args:
      values: one per seed.
      scale: size of the numbers that the values are differences of, if they are: what is below the
        precision of float32 at that size counts as no difference.
      caution: `CAUTION` for values that may be skewed, 1 for differences.
    """
    values = list(values)
    n = len(values)
    error = deviation(values, scale) / math.sqrt(n) if n else math.nan
    return StudentT(mean(values), error, n - 1.0, caution)


def welch(a: Iterable[float], b: Iterable[float]) -> StudentT:
    """Returns mean(a) - mean(b), variances apart (Welch 1947, Biometrika 34, 28-35).

    Seeds are not paired: the runs of two arms with the same seed are hardly more alike than others
    (correlations of about .04), and pairing costs half of the degrees of freedom.
    """
    a, b = list(a), list(b)
    apart = mean(a) - mean(b)
    if min(len(a), len(b)) < 2:
        return StudentT(apart, math.nan, math.nan)
    scale = max(map(abs, (*a, *b)))
    va, vb = deviation(a, scale) ** 2 / len(a), deviation(b, scale) ** 2 / len(b)
    if va + vb == 0:
        return StudentT(apart, 0.0, len(a) + len(b) - 2.0)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return StudentT(apart, math.sqrt(va + vb), df)


def pooled_deviation(samples: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Returns the standard deviation within samples, pooled, and its degrees of freedom.

    NaN and 0 when no sample has two values.
    """
    parts = [(deviation(s), len(s) - 1) for s in map(list, samples) if len(s) > 1]
    df = sum(d for _, d in parts)
    return (math.sqrt(math.fsum(sd * sd * d for sd, d in parts) / df), df) if df else (math.nan, 0)


def minimum_detectable_effect(
    error: float, df: float, alpha: float = ALPHA, power: float = POWER
) -> float:
    """Returns the true difference that a two-sided t test finds with probability `power`.

    Args:
      error: standard error of the difference, in units of the outcome.
      df: its degrees of freedom.
      alpha: two-sided level, corrected for the number of comparisons if there are several.

    Solved on the noncentral t distribution (Cohen 1988, ch. 2). NaN without a standard error.
    """
    if not error > 0:
        return math.nan
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
