"""The verdicts that a claim can get, and what a report knows of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research import stats
from research.ablation.claims import Claim
from research.report.judging.quantity import Quantity

SUPPORTED, REFUTED, OPEN = "supported", "refuted", "open"
CANNOT_TELL, UNTESTED = "cannot tell", "not tested"
"""Verdicts. "open": the interval includes the border; "cannot tell": the runs could not decide,
whatever they gave; "not tested": the claim only shows figures."""

VERDICTS = (SUPPORTED, REFUTED, OPEN, CANNOT_TELL, UNTESTED)


@dataclass(frozen=True)
class Check:
    """A quantity with its interval and what it says of the claim.

    Attributes:
      quantity: the number and its region.
      low, high: the interval that is held to the region; NaN where there is none.
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
      effect: what was measured, a sentence with the number, its interval and what that is of.
      tested: what was tested, a sentence made from the test.
      why: why the verdict is not a stronger one, a sentence; "" when there is nothing to add.
      level: the two-sided level of the test, corrected for the number of claims.
      family: number of claims corrected together; 1 for an exploratory claim.
      checks: the quantities behind it.
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
        """The sentences in one line."""
        return " ".join(text for text in (self.effect, self.tested, self.why) if text)
