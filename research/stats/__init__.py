"""Tests, intervals and estimates for plain numbers, each with its source; uses scipy, not jax.

Imports nothing from the rest of the project.
"""

from research.stats.comparisons import (
    CAUTION,
    POWER,
    Estimate,
    Exact,
    RankDifference,
    Sample,
    StudentT,
    added_error,
    mean_of,
    minimum_detectable_effect,
    pooled_deviation,
    welch,
)
from research.stats.items import Component, ItemErrors, Results, deviations, item_errors
from research.stats.location import ALPHA, Summary, deviation, mean, median, summary, t_quantile
from research.stats.multiplicity import holm, holm_levels
from research.stats.proportions import Proportion, ProportionDifference, clopper_pearson
from research.stats.selection import choice_deviation, choice_probabilities

__all__ = [
    "ALPHA",
    "CAUTION",
    "Component",
    "POWER",
    "Estimate",
    "Exact",
    "ItemErrors",
    "Proportion",
    "ProportionDifference",
    "RankDifference",
    "Results",
    "Sample",
    "StudentT",
    "Summary",
    "added_error",
    "choice_deviation",
    "choice_probabilities",
    "clopper_pearson",
    "deviation",
    "deviations",
    "holm",
    "holm_levels",
    "item_errors",
    "mean",
    "mean_of",
    "median",
    "minimum_detectable_effect",
    "pooled_deviation",
    "summary",
    "t_quantile",
    "welch",
]
