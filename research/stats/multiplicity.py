"""Correction of p-values and levels for multiple testing."""

import math
from collections.abc import Sequence

from research.stats.location import ALPHA


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's step-down adjusted p-values (Holm 1979, Scand. J. Stat. 6, 65-70).

    NaN stays NaN and is not counted, so a comparison that could not be made costs no power.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, running = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        adjusted[i] = running
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Returns the level at which Holm's procedure tests each hypothesis.

    An interval of level 1 - level excludes the hypothesis exactly when Holm rejects it. The
    procedure stops at the first hypothesis that is not rejected, so all later ones get its level.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    levels, level, stopped = [alpha] * len(p_values), alpha, False
    for rank, (p, i) in enumerate(order):
        if not stopped:
            level = alpha / (len(order) - rank)
            stopped = p > level
        levels[i] = level
    return levels
