"""Estimates with a standard error, and rank tests for times that may be censored.

All estimates of this package have the same three methods, so that verdicts can treat them alike:
`p_above(border)` and `p_below(border)` are one-sided p-values of the null hypothesis "the true
value is not above (below) the border", and `interval(alpha)` is the two-sided confidence interval
of level 1 - alpha.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import nctdtr, stdtr
from scipy.stats import permutation_test, rankdata

from research.stats.items import Component
from research.stats.location import ALPHA, deviation, mean, t_quantile

POWER = 0.8
"""Default power for the minimum detectable effect."""

CAUTION = 30.0
"""Factor by which the level of a t test of a single mean is divided.

For skewed outcomes of 3 to 20 seeds (lognormal, beta(8, 1/2)), one-sided errors of that test are up
to 45 times as frequent as its nominal level. Differences of two arms do not need this, because the
skew of both arms largely cancels.
"""

PERMUTATIONS = 9999
"""Random permutations that a rank test samples; it is exact if there are fewer in all."""

Sample = Mapping[int, float]
"""{seed: value} of one arm at one point."""


@dataclass(frozen=True)
class StudentT:
    """An estimate whose t statistic, (estimate - true value) / error, is Student-t distributed.

    Attributes:
      estimate: the estimate.
      error: its standard error; NaN with too few seeds, 0 if the seeds do not differ.
      df: degrees of freedom.
      caution: p-values are multiplied by it, and intervals are widened to match.
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
        # Without spread among the seeds, nothing can be said about another seed.
        if not self.error > 0:
            return 1.0
        return min(1.0, self.caution * float(stdtr(self.df, -distance / self.error)))


@dataclass(frozen=True)
class Exact:
    """A number without sampling error, such as the parameter count of an arm."""

    estimate: float

    def p_above(self, border: float) -> float:
        """Returns 0 when the number is above `border`, else 1."""
        return 0.0 if self.estimate > border else 1.0

    def p_below(self, border: float) -> float:
        """Returns 0 when the number is below `border`, else 1."""
        return 0.0 if self.estimate < border else 1.0

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Returns the number as both ends of the interval."""
        return self.estimate, self.estimate


@dataclass(frozen=True)
class RankDifference:
    """Tests whether the values of one arm tend to be larger than those of another.

    Meant for times to an event. A seed without the event counts as infinity, later than all others,
    which is valid if all seeds were observed equally long (Gehan 1965, Biometrika 52, 203-223). The
    estimate is the probability that a seed of `a` has the larger value than a seed of `b`, ties
    counting half, minus one half. The test is a permutation test of the Mann-Whitney statistic.
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
        """Returns NaN for both ends: this test has no interval."""
        return math.nan, math.nan

    def _p(self, alternative: str) -> float:
        # Mean ranks order permutations like the Mann-Whitney statistic and are fast to compute.
        ranks = rankdata((*self.a, *self.b))
        found = permutation_test(
            (ranks[: len(self.a)], ranks[len(self.a) :]),
            lambda a, b, axis: a.mean(axis) - b.mean(axis),
            permutation_type="independent",
            vectorized=True,
            n_resamples=PERMUTATIONS,
            alternative=alternative,
            rng=np.random.default_rng(0),  # fixed, so that the same runs get the same verdict
        )
        return float(found.pvalue)


Estimate = StudentT | Exact | RankDifference


def mean_of(
    values: Iterable[float],
    scale: float = 0.0,
    caution: float = 1.0,
    items: Sequence[Component] = (),
) -> StudentT:
    """Returns the mean with its standard error.

    Args:
      values: one per seed.
      scale: if the values are differences, the magnitude of the numbers that were subtracted;
        a spread below float32 precision at that magnitude counts as zero.
      caution: `CAUTION` for values that may be skewed, 1 for differences.
      items: what the test items add to the squared error (`ItemErrors.of_mean`). Values without
        spread have the error 0 all the same, as nothing is known of other seeds.
    """
    values = list(values)
    n = len(values)
    error = deviation(values, scale) / math.sqrt(n) if n else math.nan
    if not error > 0:
        return StudentT(mean(values), error, n - 1.0, caution)
    return StudentT(mean(values), *added_error([Component(error**2, n - 1.0), *items]), caution)


def welch(a: Iterable[float], b: Iterable[float], items: Sequence[Component] = ()) -> StudentT:
    """Returns mean(a) - mean(b) with unequal variances (Welch 1947, Biometrika 34, 28-35).

    Seeds are not paired: runs of two arms with the same seed are hardly more alike than others
    (correlations of about .04), and pairing would cost half of the degrees of freedom.

    Args:
      a, b: values, one per seed.
      items: what the test items add to the squared error (`ItemErrors.of_difference`). Without any
        spread over seeds the error is 0 all the same.
    """
    a, b = list(a), list(b)
    apart = mean(a) - mean(b)
    if min(len(a), len(b)) < 2:
        return StudentT(apart, math.nan, math.nan)
    # One scale for both samples: what is float32 noise in one is noise in their difference too.
    scale = max(map(abs, (*a, *b)))
    va, vb = deviation(a, scale) ** 2 / len(a), deviation(b, scale) ** 2 / len(b)
    if va + vb == 0:
        return StudentT(apart, 0.0, len(a) + len(b) - 2.0)
    seeds = [Component(va, len(a) - 1.0), Component(vb, len(b) - 1.0)]
    return StudentT(apart, *added_error([*seeds, *items]))


def added_error(components: Sequence[Component]) -> tuple[float, float]:
    """Returns the standard error of a sum of independent errors, and its degrees of freedom.

    Source: Satterthwaite 1946, Biometrics Bulletin 2(6), 110-114.
    """
    total = math.fsum(c.variance for c in components)
    df = total**2 / math.fsum(c.variance**2 / c.df for c in components)
    return math.sqrt(total), df


def pooled_deviation(samples: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Returns the pooled within-sample standard deviation and its degrees of freedom.

    Returns NaN and 0 if no sample has two values.
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
        # Rejections in the wrong direction are ignored: at this power their probability is below
        # 1e-6, and scipy returns NaN for it.
        return 1 - float(nctdtr(df, shift, critical))

    low, high = 0.0, critical
    while found(high) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high * error
