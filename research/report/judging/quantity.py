"""One number that a claim speaks of, with the region that it wants it in, and its p-values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from research.stats import Estimate, Proportion, ProportionDifference

Side = tuple[str, Mapping[str, Any]]
"""An arm at a point."""


@dataclass(frozen=True)
class Quantity:
    """One number a claim speaks of, and the region the claim wants it in.

    Attributes:
      label: where it is measured, "" when there is only one place.
      what: what it is, for example "mean accuracy of additive minus that of none".
      estimate: the number, with its tests and intervals; None without runs.
      low, high: the claimed region.
      n: seeds of each arm.
      one_sided: whether verdicts take one-sided bounds of level 95 %, as of a proportion that is
        held to a border. Otherwise they take 95 % intervals, each end a bound of 97.5 %.
      obstacle: why nothing can be told from it, whatever the test says; "" if something can.
      allowance: what other tuning seeds might have done to the number: tests and intervals leave so
        much room on either side.
      raised_by, lowered_by: which arm, if it were better than it is, would raise or lower the
        number; None where no arm would.
      counted_at: value of the metric that a seed counts from, if the number is of seeds that do.
    """

    label: str
    what: str
    estimate: Estimate | Proportion | ProportionDifference | None
    low: float
    high: float
    n: tuple[int, ...]
    one_sided: bool = False
    obstacle: str = ""
    allowance: float = 0.0
    raised_by: Side | None = None
    lowered_by: Side | None = None
    counted_at: float | None = None

    @property
    def support(self) -> float:
        """The p-value of "outside of the region", 1 where nothing can be told."""
        if self.obstacle or self.estimate is None:
            return 1.0
        p = 0.0
        if math.isfinite(self.low):
            p = max(p, self.estimate.p_above(self.low + self.allowance))
        if math.isfinite(self.high):
            p = max(p, self.estimate.p_below(self.high - self.allowance))
        return min(1.0, p * (1 if self.one_sided else 2))

    @property
    def contradiction(self) -> float:
        """The p-value of "inside of the region", 1 where nothing can be told."""
        if self.obstacle or self.estimate is None:
            return 1.0
        tails = []
        if math.isfinite(self.low):
            tails.append(self.estimate.p_below(self.low - self.allowance))
        if math.isfinite(self.high):
            tails.append(self.estimate.p_above(self.high + self.allowance))
        return min(1.0, min(tails) * len(tails) * (1 if self.one_sided else 2))

    @property
    def p_different(self) -> float:
        """The two-sided p-value of "the number is 0"; NaN where nothing can be told."""
        if self.obstacle or self.estimate is None:
            return math.nan
        room = self.allowance
        return min(1.0, 2 * min(self.estimate.p_above(room), self.estimate.p_below(-room)))

    def interval(self, level: float) -> tuple[float, float]:
        """Returns the interval whose place decides a test of this level; NaN if there is none."""
        if self.estimate is None:
            return math.nan, math.nan
        low, high = self.estimate.interval(2 * level if self.one_sided else level)
        low, high = low - self.allowance, high + self.allowance
        if isinstance(self.estimate, Proportion | ProportionDifference):
            return max(low, 0.0 if isinstance(self.estimate, Proportion) else -1.0), min(high, 1.0)
        return low, high
