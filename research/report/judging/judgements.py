"""Verdicts on claims and the records behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research import stats
from research.ablation.claims import Claim
from research.report.judging.quantity import Quantity

SUPPORTED, REFUTED, OPEN = "supported", "refuted", "open"
CANNOT_TELL, UNTESTED = "cannot tell", "not tested"
"""Verdicts. "open": the interval includes the border; "cannot tell": no possible result of these
runs could decide the claim; "not tested": the claim only shows published figures."""

VERDICTS = (SUPPORTED, REFUTED, OPEN, CANNOT_TELL, UNTESTED)


@dataclass(frozen=True)
class Check:
    """A quantity with its interval and its verdict.

    Attributes:
      quantity: the number and its claimed region.
      low, high: interval that is compared with the region; NaN if there is none.
      verdict: one of `VERDICTS`.
    """

    quantity: Quantity
    low: float
    high: float
    verdict: str


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim.

    Attributes:
      claim: the claim.
      verdict: one of `VERDICTS`.
      effect: sentence on the measured number, with its interval and the kind of interval.
      tested: sentence on what was tested.
      why: sentence on why the verdict is not stronger; "" if there is nothing to add.
      level: the two-sided level of the test, corrected for the number of claims.
      family: number of claims corrected together; 1 for an exploratory claim.
      checks: the checked quantities.
      ours: {published label: mean and extremes of our seeds}, for the labels that are arms.
    """

    claim: Claim
    verdict: str
    effect: str
    tested: str
    why: str
    level: float
    family: int
    checks: Sequence[Check]
    ours: Mapping[str, stats.Summary]

    @property
    def reason(self) -> str:
        """The sentences joined into one line."""
        return " ".join(text for text in (self.effect, self.tested, self.why) if text)
