"""Exact inference on success probabilities: seeds that solve a task, for one arm or for two.

All tests and intervals are exact, so they hold their level even for the small n used here.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binom, binomtest

from research.stats.location import ALPHA

NUISANCE = 101
"""Grid size for the nuisance parameter (the unknown probability) of an exact test."""


def clopper_pearson(successes: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Returns the exact two-sided interval for a proportion (Clopper and Pearson 1934).

    Each end is a one-sided bound of level 1 - alpha / 2.
    """
    if n == 0:
        return math.nan, math.nan
    found = binomtest(successes, n).proportion_ci(1 - alpha, method="exact")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Proportion:
    """The probability that a seed succeeds, estimated from `k` successes in `n` seeds."""

    k: int
    n: int

    @property
    def estimate(self) -> float:
        return self.k / self.n

    def p_above(self, border: float) -> float:
        """Returns the one-sided p-value of "the probability is at most `border`"."""
        return float(binom.sf(self.k - 1, self.n, min(1.0, max(0.0, border))))

    def p_below(self, border: float) -> float:
        """Returns the one-sided p-value of "the probability is at least `border`"."""
        return float(binom.cdf(self.k, self.n, min(1.0, max(0.0, border))))

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Returns the exact two-sided interval of level 1 - alpha."""
        return clopper_pearson(self.k, self.n, alpha)


@dataclass(frozen=True)
class ProportionDifference:
    """Difference p1 - p2 of success probabilities, from k1 of n1 and k2 of n2 successful seeds.

    The tests are unconditional exact tests: they order tables by the score statistic of Farrington
    and Manning (1990, Statistics in Medicine 9, 1447-1454) and take the largest p-value over the
    unknown probability (Chan and Zhang 1999, Biometrics 55, 1202-1209).
    """

    k1: int
    n1: int
    k2: int
    n2: int

    @property
    def estimate(self) -> float:
        return self.k1 / self.n1 - self.k2 / self.n2

    def p_above(self, border: float) -> float:
        """Returns the one-sided p-value of "the difference is at most `border`"."""
        return _exact_p(self.k1, self.n1, self.k2, self.n2, border)

    def p_below(self, border: float) -> float:
        """Returns the one-sided p-value of "the difference is at least `border`"."""
        return _exact_p(self.k2, self.n2, self.k1, self.n1, -border)

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Returns the two-sided interval of level 1 - alpha: the differences not rejected."""
        # A lower bound on p2 - p1 gives the upper bound on p1 - p2.
        low = _bound(self.k1, self.n1, self.k2, self.n2, alpha / 2)
        high = -_bound(self.k2, self.n2, self.k1, self.n1, alpha / 2)
        return low, high


@lru_cache(maxsize=65536)
def _exact_p(k1: int, n1: int, k2: int, n2: int, border: float) -> float:
    """Returns the p-value of H0: p1 - p2 <= border, the maximum over p2.

    Only p1 - p2 = border is tested, since smaller differences make such a table even less likely.
    """
    if border < -1:
        return 0.0
    if border >= 1:
        return 1.0
    scores = _scores(n1, n2, border)
    # The tolerance keeps ties of the score statistic, which rounding could break, in the tail.
    far = scores >= scores[k1, k2] - 1e-9
    second = np.linspace(max(0.0, -border), min(1.0, 1.0 - border), NUISANCE)
    first = np.clip(second + border, 0.0, 1.0)
    one = binom.pmf(np.arange(n1 + 1), n1, first[:, None])
    other = binom.pmf(np.arange(n2 + 1), n2, second[:, None])
    # Total probability of the extreme tables for each value of p2, then the worst case.
    return float(min(1.0, ((one @ far) * other).sum(1).max()))


@lru_cache(maxsize=4096)
def _bound(k1: int, n1: int, k2: int, n2: int, level: float) -> float:
    """Returns the largest difference rejected as too small, by bisection; -1 if none is."""
    low, high = -1.0, 1.0
    for _ in range(14):  # accurate to 2 / 2**14, about 1e-4
        middle = (low + high) / 2
        rejected = _exact_p(k1, n1, k2, n2, middle) <= level
        low, high = (middle, high) if rejected else (low, middle)
    return low


@lru_cache(maxsize=4096)
def _scores(n1: int, n2: int, border: float) -> np.ndarray:
    """Returns the score statistic for H0: p1 - p2 = border of every table, (n1 + 1, n2 + 1)."""
    p1 = (np.arange(n1 + 1) / n1)[:, None]
    p2 = (np.arange(n2 + 1) / n2)[None, :]
    # The maximum likelihood estimate under p1 - p2 = border is a root of a cubic (Miettinen and
    # Nurminen 1985, Statistics in Medicine 4, 213-226, appendix I).
    theta = n2 / n1
    a = 1 + theta
    b = -(1 + theta + p1 + theta * p2 + border * (theta + 2))
    c = border**2 + border * (2 * p1 + theta + 1) + p1 + theta * p2
    d = -p1 * border * (1 + border)
    v = (b / (3 * a)) ** 3 - b * c / (6 * a**2) + d / (2 * a)
    root = np.sqrt(np.maximum((b / (3 * a)) ** 2 - c / (3 * a), 0.0))
    u = np.where(v < 0, -root, root)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(u == 0, 0.0, v / u**3)
        w = (math.pi + np.arccos(np.clip(ratio, -1, 1))) / 3
        first = np.clip(2 * u * np.cos(w) - b / (3 * a), max(0.0, border), min(1.0, 1 + border))
        second = np.clip(first - border, 0.0, 1.0)
        error = np.sqrt(first * (1 - first) / n1 + second * (1 - second) / n2)
        apart = p1 - p2 - border
        # With zero variance, the observed difference equals the border or is infinitely far off.
        exact = np.where(np.abs(apart) < 1e-12, 0.0, np.sign(apart) * np.inf)
        return np.where(error < 1e-12, exact, apart / error)
