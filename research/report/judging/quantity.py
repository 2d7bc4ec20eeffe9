"""A tested number with its claimed region, p-values and interval."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.stats import Estimate, Proportion, ProportionDifference

Side = tuple[str, Mapping[str, Any]]
"""An arm at a point."""


@dataclass(frozen=True)
class Quantity:
    """A number that a claim makes a statement about, and the region that the claim puts it in.

    Attributes:
      label: where it is measured; "" if there is only one place.
      what: description, for example "mean accuracy of additive minus that of none".
      estimate: the number, with its tests and intervals; None without runs.
      low, high: the claimed region.
      n: number of seeds of each arm.
      items: number of test items whose error is in the estimate: one if the arms share them, else
        one for each arm; () if their error is unknown, or in the spread over seeds.
      one_sided: whether verdicts use one-sided 95 % bounds, as for a proportion compared with a
        border. Otherwise they use 95 % intervals, whose ends are 97.5 % bounds.
      obstacle: why no verdict is possible, whatever the test says; "" if one is.
      allowance: margin for selection noise from tuning, by which tests and intervals are widened on
        either side.
      raised_by, lowered_by: the arm that would raise or lower the number if it were better than
        measured; None if there is no such arm.
      ends: lowest and highest possible value of the number, where intervals end.
      counted_at: threshold of the metric at which a seed counts, if the number counts seeds.
    """

    label: str
    what: str
    estimate: Estimate | Proportion | ProportionDifference | None
    low: float
    high: float
    n: tuple[int, ...]
    one_sided: bool = False
    obstacle: str = ""
    items: tuple[int, ...] = ()
    allowance: float = 0.0
    raised_by: Side | None = None
    lowered_by: Side | None = None
    counted_at: float | None = None
    ends: tuple[float, float] = (-math.inf, math.inf)

    @property
    def support(self) -> float:
        """The p-value of the null hypothesis "outside of the region"; 1 with an obstacle."""
        if self.obstacle or self.estimate is None:
            return 1.0
        p = 0.0
        # Both ends must hold, so the larger p-value counts (two one-sided tests).
        if math.isfinite(self.low):
            p = max(p, self.estimate.p_above(self.low + self.allowance))
        if math.isfinite(self.high):
            p = max(p, self.estimate.p_below(self.high - self.allowance))
        return min(1.0, p * (1 if self.one_sided else 2))

    @property
    def contradiction(self) -> float:
        """The p-value of the null hypothesis "inside of the region"; 1 with an obstacle."""
        if self.obstacle or self.estimate is None:
            return 1.0
        tails = []
        if math.isfinite(self.low):
            tails.append(self.estimate.p_below(self.low - self.allowance))
        if math.isfinite(self.high):
            tails.append(self.estimate.p_above(self.high + self.allowance))
        # Lying beyond either end refutes the claim: Bonferroni over the finite ends.
        return min(1.0, min(tails) * len(tails) * (1 if self.one_sided else 2))

    @property
    def p_different(self) -> float:
        """The two-sided p-value of the null hypothesis "the number is 0"; NaN with an obstacle."""
        if self.obstacle or self.estimate is None:
            return math.nan
        room = self.allowance
        return min(1.0, 2 * min(self.estimate.p_above(room), self.estimate.p_below(-room)))

    def interval(self, level: float) -> tuple[float, float]:
        """Returns the interval that is compared with the region at this level; NaN if none."""
        if self.estimate is None:
            return math.nan, math.nan
        low, high = self.estimate.interval(2 * level if self.one_sided else level)
        # What lies beyond the possible values is no part of an interval; coverage is unchanged.
        lowest, highest = self.ends
        return max(low - self.allowance, lowest), min(high + self.allowance, highest)
