"""Whether an arm had learned what it was going to learn when its training ended.

That an arm does not reach something, or is worse than another one, says little of it while its
curve still rises: it may be slower and not unable. So a verdict that rests on an arm's being no
better needs the last quarter of its validation curve to be flat:

  the gain of a seed is the slope of the least-squares line through its last quarter, times the
    length of that quarter;
  the arm is flat when the upper one-sided 95 % bound of the mean gain over seeds is at most
    `FLAT` of what the curve of the fastest arm rose by in all of training, and, where the curve is
    of the metric that is judged, at most a quarter of what the arm lacks: as much training again
    at that slope would not make it up.

At 2 %, a curve that nears its end exponentially has about 1 % left to gain. A plateau that comes
before a jump is flat, too, and so is any curve under a learning rate that has fallen to zero: the
test says that this run was over, not that no longer one could go further.
"""

import math
from collections.abc import Mapping

from research import stats
from research.ablation.claims import SLICE
from research.ablation.measure import Measure, Progress, point_key
from research.report.formatting import number
from research.report.judging.curves import PART
from research.report.judging.quantity import Quantity, Side
from research.stats import ALPHA

FLAT = 0.02
"""Gain in that part, as a share of what was learned in all of training, that counts as none."""


def doubt(q: Quantity, refuted: bool, data: Measure) -> str:
    """Says why a verdict on a quantity rests on an arm that may not have converged; "" if not.

    Args:
      q: the quantity, of which the verdict is "supported" or "refuted".
      refuted: which of them.
      data: what it is of.
    """
    if q.estimate is None:
        return ""
    value, bounded = q.estimate.estimate, (math.isfinite(q.low), math.isfinite(q.high))
    if refuted:
        below = bounded[0] and value < q.low
        side, border = (q.raised_by, q.low) if below else (q.lowered_by, q.high)
    elif all(bounded):
        return ""  # that two are alike says of neither that it cannot do something
    else:
        side, border = (q.lowered_by, q.low) if bounded[0] else (q.raised_by, q.high)
    return _unfinished(side, abs(value - border), q.counted_at, data) if side else ""


def _unfinished(side: Side, lacking: float, counted_at: float | None, data: Measure) -> str:
    """Says that an arm is not shown to have converged, or that it cannot be; "" if it has."""
    arm, point = side
    place = {k: v for k, v in point.items() if k != SLICE}
    progress = data.progress.get((arm, point_key(place)))
    if progress is None or not progress.gains:
        why = progress.problem if progress else f"no curve of {data.name} or of the loss"
        return f"whether {arm} has converged is not testable: {why}"
    gains = progress.gains
    if counted_at is not None:
        # Of a share of seeds the others decide: they would have to get there.
        sample = data.sample(arm, point)
        short = [s for s in gains if s in sample and not data.reached(sample[s], counted_at)]
        gains = {s: gains[s] for s in short}
        if not gains:
            return ""
        lacking = abs(counted_at - stats.mean(sample[s] for s in short))
    if len(gains) < 2:
        return f"whether {arm} has converged is not testable: one seed has a curve"
    return _rising(arm, progress, gains, lacking)


def _rising(arm: str, progress: Progress, gains: Mapping[int, float], lacking: float) -> str:
    tolerated = FLAT * progress.learned
    if progress.own:
        tolerated = min(tolerated, PART * lacking)
    found = stats.mean_of(gains.values())
    # Upper one-sided bound; of curves that do not differ, what they all gained.
    high = found.interval(2 * ALPHA)[1] if found.error > 0 else found.estimate
    if high <= tolerated:
        return ""
    return (
        f"{arm} is not shown to have converged: its validation {progress.curve} got better by "
        f"{number(found.estimate)} in the last quarter of training, by at most {number(high)} with "
        f"95 % confidence, and {number(tolerated)} would count as flat"
    )
