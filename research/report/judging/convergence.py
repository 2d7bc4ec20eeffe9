"""Checks whether an arm had converged when its training ended.

If an arm misses a threshold or is worse than another arm while its validation curve is still
rising, it may only be slower to learn. A verdict that depends on an arm not being better therefore
requires the last quarter of its validation curve to be flat:

  the gain of a seed is the slope of a least-squares line through the last quarter of its curve,
    times the length of that quarter;
  the arm is flat if the upper one-sided 95 % bound of its mean gain over seeds is at most `FLAT`
    times the improvement over all of training of the arm that improved most, and, if the curve is
    of the judged metric itself, at most a quarter of what the arm lacks, so that training for as
    long again at that slope would not close the gap.

At 2 %, a curve that approaches its limit exponentially has about 1 % left to gain. A plateau before
a jump also counts as flat, and so does any curve after the learning rate has decayed to zero: the
test says that this run was over, not that a longer one could not get further.
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
"""Maximum gain in the last part of training, relative to all of training, that counts as flat."""


def convergence_caveat(q: Quantity, refuted: bool, data: Measure) -> str:
    """Returns why a verdict depends on an arm that may not have converged; "" if it does not.

    Args:
      q: the quantity, whose verdict is "supported" or "refuted".
      refuted: whether the verdict is "refuted".
      data: the measure that the quantity was computed from.
    """
    if q.estimate is None:
        return ""
    value, bounded = q.estimate.estimate, (math.isfinite(q.low), math.isfinite(q.high))
    if refuted:
        below = bounded[0] and value < q.low
        side, border = (q.raised_by, q.low) if below else (q.lowered_by, q.high)
    elif all(bounded):
        return ""  # equivalence does not say that either arm is unable to do better
    else:
        side, border = (q.lowered_by, q.low) if bounded[0] else (q.raised_by, q.high)
    return _unfinished(side, abs(value - border), q.counted_at, data) if side else ""


def _unfinished(side: Side, lacking: float, counted_at: float | None, data: Measure) -> str:
    """Returns why an arm is not shown to have converged; "" if it has."""
    arm, point = side
    place = {k: v for k, v in point.items() if k != SLICE}
    progress = data.progress.get((arm, point_key(place)))
    if progress is None or not progress.gains:
        why = progress.problem if progress else f"no curve of {data.name} or of the loss"
        return f"whether {arm} has converged is not testable: {why}"
    gains = progress.gains
    if counted_at is not None:
        # For a share of seeds, only the seeds that miss the threshold matter: they would have to
        # reach it for the number to change.
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
    # Upper one-sided bound of the mean gain; if all gains are equal, that gain.
    high = found.interval(2 * ALPHA)[1] if found.error > 0 else found.estimate
    if high <= tolerated:
        return ""
    return (
        f"{arm} is not shown to have converged: its validation {progress.curve} got better by "
        f"{number(found.estimate)} in the last quarter of training, by at most {number(high)} with "
        f"95 % confidence, and {number(tolerated)} would count as flat"
    )
