"""Statistics of plain numbers, each with its source; scipy where scipy has it. Imports no jax.

Imports nothing of the project but its own files.
"""

from research.stats.comparisons import (
    POWER,
    Comparison,
    Sample,
    compare,
    minimum_detectable_effect,
    p_value,
    tost,
)
from research.stats.location import (
    ALPHA,
    Interval,
    deviation,
    mean,
    median,
    median_interval,
    t_interval,
    t_quantile,
)
from research.stats.multiplicity import holm, holm_levels
from research.stats.proportions import wilson

__all__ = [
    "ALPHA",
    "POWER",
    "Comparison",
    "Interval",
    "Sample",
    "compare",
    "deviation",
    "holm",
    "holm_levels",
    "mean",
    "median",
    "median_interval",
    "minimum_detectable_effect",
    "p_value",
    "t_interval",
    "t_quantile",
    "tost",
    "wilson",
]
