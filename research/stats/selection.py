"""Selection noise: the uncertainty added by choosing the best of several options."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from research.stats.comparisons import pooled_deviation
from research.stats.location import mean

POINTS = 801
"""Quadrature points for the integral over the best score; its error is far below 1e-6."""
RARE = 1e-6
"""Probability up to which an option counts as never chosen."""


def choice_probabilities(means: Sequence[float], error: float) -> list[float]:
    """Returns the probability that each of several independent normal scores is the largest.

    Args:
      means: expected scores.
      error: standard deviation of every score; with 0, the largest mean has probability 1, and ties
        go to the first.
    """
    top = max(means)
    if not error > 0:
        return [float(i == list(means).index(top)) for i in range(len(means))]
    centres = np.asarray(means)
    x = np.linspace(top - 8 * error, top + 8 * error, POINTS)[:, None]
    below, density = norm.cdf(x, centres, error), norm.pdf(x, centres, error)
    others = [np.delete(below, i, axis=1).prod(axis=1) for i in range(len(means))]
    # P(i is the largest) = integral of its density times the CDFs of all other scores.
    found = [float(np.trapezoid(density[:, i] * o, x[:, 0])) for i, o in enumerate(others)]
    return [p / math.fsum(found) for p in found]


def choice_deviation(scores: Sequence[Sequence[float]], values: Sequence[float]) -> float:
    """Returns the standard deviation of the value of the option with the best mean score.

    The deviation is over new draws of the scores (parametric bootstrap, Efron and Tibshirani 1993,
    section 6.5): the scores of an option are normal around their observed mean, with the pooled
    within-option deviation. Returns 0 if every draw would choose the same option, or options with
    the same value; NaN if no option has two scores, since the variance is then unknown.

    Args:
      scores: scores of each option, one per seed; higher is better.
      values: value of each option.
    """
    if len(scores) < 2:
        return 0.0
    spread, df = pooled_deviation(scores)
    if not df:
        return math.nan
    # The smallest sample has the largest standard error, which is assumed for all options.
    fewest = min(map(len, scores))
    weights = choice_probabilities([mean(s) for s in scores], spread / math.sqrt(fewest))
    # Relative to the first value, so that equal values give exactly 0.
    pairs = [(w, v - values[0]) for w, v in zip(weights, values, strict=True) if w > RARE]
    centre = math.fsum(w * v for w, v in pairs)
    return math.sqrt(math.fsum(w * (v - centre) ** 2 for w, v in pairs))
