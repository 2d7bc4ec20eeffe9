"""The error that a test set adds to results: its items are a sample, which all seeds share.

Seeds and items are crossed random effects: every seed is tested on every item. The spread over
seeds then shows nothing of the error that another sample of items would have shown. The squared
error of a mean is the sum of both (Owen 2007, "The pigeonhole bootstrap", Annals of Applied
Statistics 1(2), 386-411; Owen and Eckles 2012, "Bootstrapping data arrays of arbitrary order",
Annals of Applied Statistics 6(3), 895-927):

  s^2 / n + var_i(r_i) / m

with s^2 the variance over n seeds, and r_i the result of item i of m, averaged over the seeds. For
a difference of two arms that are tested on the same items, r_i is the difference of the two, so
that what makes an item easy or hard for both does not count. What is particular to a seed and an
item is in both terms, which makes the sum slightly too large, never too small.

Metrics are ratios of sums, such as right answers per question, so r_i is the linear term of the
ratio R in the item's total and count, (total_i - R count_i) / mean(count) (Cochran 1977, "Sampling
Techniques", 3rd edition, section 6.3).
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

DIGITS = 6
"""Significant digits of a variance, which is estimated to two or three at best."""


class Component(NamedTuple):
    """A component of the squared standard error of an estimate, and its degrees of freedom."""

    variance: float
    df: float


class Results(NamedTuple):
    """Results of the items of one test set, averaged over seeds.

    Attributes:
      ids: (N,) identity of each item, in an order that is the same for the same test set.
      deviations: (N,) how much each item moves the mean; 0 for items that do not count.
      counted: (N,) bool, whether an item counts.
    """

    ids: np.ndarray
    deviations: np.ndarray
    counted: np.ndarray


def deviations(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Returns by how much each of N items differs from the ratio of the sums, (N,).

    They sum to 0. If all counts are 1, they are the values minus their mean.

    Args:
      total, count: (N,) numerator and denominator of each item; at least one count is not 0.
    """
    total, count = np.asarray(total, np.float64), np.asarray(count, np.float64)
    ratio = total.sum() / count.sum()
    return (total - ratio * count) / (count.sum() / (count > 0).sum())


def item_component(deviations: np.ndarray, counted: np.ndarray) -> Component | None:
    """Returns the variance of a mean over draws of its items; None for fewer than two items.

    Args:
      deviations: (N,) by how much each item moves the mean, or the difference of two means.
      counted: (N,) bool, whether an item counts.
    """
    m = int(counted.sum())
    if m < 2:
        return None
    variance = float(np.square(deviations).sum()) / (m * (m - 1))
    return Component(float(f"{variance:.{DIGITS}g}"), m - 1.0)


@dataclass(frozen=True)
class ItemErrors:
    """The errors of means over the test items, and those of differences between them.

    Attributes:
      means: {place: variance of its mean over draws of the test items}.
      differences: {pair of places: variance of the difference of their means}, for places that are
        tested on the same items.
    """

    means: Mapping[Any, Component] = field(default_factory=dict)
    differences: Mapping[frozenset[Any], Component] = field(default_factory=dict)

    def of_mean(self, place: Hashable) -> list[Component]:
        """Returns the component of a mean; [] if the results of its items are unknown."""
        return [self.means[place]] if place in self.means else []

    def of_difference(self, a: Hashable, b: Hashable) -> list[Component]:
        """Returns the component of a difference, or two if a and b have items of their own.

        Returns [] if the items of either are unknown.
        """
        if frozenset((a, b)) in self.differences:
            return [self.differences[frozenset((a, b))]]
        both = [*self.of_mean(a), *self.of_mean(b)]
        return both if len(both) == 2 else []


def item_errors(
    results: Mapping[Any, Results], pairs: Iterable[tuple[Any, Any]] | None = None
) -> ItemErrors:
    """Returns the errors of means and of differences.

    Args:
      results: {place: results of its items}.
      pairs: the pairs of places that are compared; None: all.
    """
    means = {place: item_component(r.deviations, r.counted) for place, r in results.items()}
    differences = {}
    for a, b in combinations(results, 2) if pairs is None else pairs:
        one, other = results[a], results[b]
        if np.array_equal(one.ids, other.ids):
            apart = one.deviations - other.deviations
            differences[frozenset((a, b))] = item_component(apart, one.counted | other.counted)
    return ItemErrors(
        {place: c for place, c in means.items() if c},
        {pair: c for pair, c in differences.items() if c},
    )
