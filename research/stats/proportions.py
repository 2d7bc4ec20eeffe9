"""Proportions: how many of n seeds solved a task."""

import math

from scipy.special import ndtri

from research.stats.location import ALPHA


def wilson(successes: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion (Wilson 1927, JASA 22, 209-212)."""
    if n == 0:
        return math.nan, math.nan
    z = float(ndtri(1 - alpha / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the exact ends are 0 and 1; rounding would miss them by 1e-17.
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == n else centre + half
