"""Verdicts: a claim's test applied to the measured runs.

Every test comes down to one or more quantities (a mean, a difference, a change along an axis) and
the region where the claim wants each of them. A quantity supports the claim when its interval lies
wholly inside the region, refutes it when wholly outside, and is inconclusive otherwise. A claim
about several quantities is supported when all support it and refuted when one refutes it. With
several, each interval has the level at which Holm's procedure tests it, so that the chance of any
wrong exclusion stays at 5 %.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from research import stats
from research.ablation.claims import Claim, Crossover, Direction, Test, Trend
from research.ablation.measure import Measure, point_key
from research.ablation.quantities import (
    Quantity,
    along_axis,
    axis_positions,
    difference,
    matches,
    quantities,
)
from research.ablation.wording import count, point_text, span, value_text
from research.stats import Interval

SUPPORTED, REFUTED, INCONCLUSIVE, UNTESTED = "supported", "refuted", "inconclusive", "not tested"
"""Verdicts; "not tested" is for a claim that only shows figures."""

ONE_SEED = "one seed is not evidence"


@dataclass(frozen=True)
class Check:
    """A quantity with its interval and what it says of the claim."""

    quantity: Quantity
    interval: Interval
    verdict: str


@dataclass(frozen=True)
class Judgement:
    """The verdict on a claim.

    Attributes:
      claim: the claim.
      verdict: "supported", "refuted", "inconclusive" or "not tested".
      reason: one sentence with the numbers.
      checks: the quantities behind it.
      ours: {published label: our interval}, for the labels that are arms.
    """

    claim: Claim
    verdict: str
    reason: str
    checks: Sequence[Check]
    ours: Mapping[str, Interval]


def judge(claim: Claim, measure: Callable[[str, str], Measure]) -> Judgement:
    """Returns the verdict on a claim.

    Args:
      claim: the claim.
      measure: (metric, better) -> Measure; "" is the outcome of the experiment.
    """
    test = claim.test
    if test is None:
        ours = _ours(claim, measure("", ""), {})
        return Judgement(claim, UNTESTED, "Shown beside our figures; nothing is tested.", (), ours)
    data = measure(test.metric, getattr(test, "better", ""))
    ours = _ours(claim, data, test.at)
    if isinstance(test, Direction | Crossover) and data.higher_is_better is None:
        reason = f"Whether higher or lower {data.name} is better is not said; the test needs it."
        return Judgement(claim, INCONCLUSIVE, reason, (), ours)
    places = [p for p in data.points if matches(p, test.at)]
    if not places:
        reason = f"The sweep has no point with {point_text(test.at)}."
        return Judgement(claim, INCONCLUSIVE, reason, (), ours)
    lacking = _lacking(test, places)
    if lacking:
        return Judgement(claim, INCONCLUSIVE, lacking, (), ours)
    checks = check(quantities(test, data, places))
    verdict = _overall(test, checks)
    return Judgement(claim, verdict, _reason(test, data, checks, verdict), checks, ours)


def _lacking(test: Test, places: Sequence[Mapping]) -> str:
    """Says why the sweep's points cannot decide a claim along an axis; "" when they can."""
    if not isinstance(test, Trend | Crossover):
        return ""
    for group in along_axis(places, test.along):
        x = axis_positions([p.get(test.along) for p in group])
        if len(x) < 2:
            return f"The sweep has fewer than two values of {test.along}."
        value = test.value if isinstance(test, Crossover) else None
        if value is not None and not min(x) < value < max(x):
            return f"The sweep has no values of {test.along} on both sides of {value_text(value)}."
    return ""


def _ours(claim: Claim, data: Measure, at: Mapping) -> dict[str, Interval]:
    """Our mean of each published arm over the claim's points, one value per seed."""
    labels = claim.published if isinstance(claim.published, Mapping) else {}
    ours = {}
    for arm in labels:
        seeds: dict[int, list[float]] = {}
        for point in data.points:
            if matches(point, at):
                for seed, value in data.values.get((arm, point_key(point)), {}).items():
                    seeds.setdefault(seed, []).append(value)
        if seeds:
            ours[arm] = stats.t_interval([stats.mean(v) for v in seeds.values()])
    return ours


def check(quantities: Sequence[Quantity], alpha: float = stats.ALPHA) -> list[Check]:
    """Returns each quantity's interval and verdict, Holm-corrected over all of them."""
    levels = stats.holm_levels([_p(q) for q in quantities], alpha)
    return [_check(q, level) for q, level in zip(quantities, levels, strict=True)]


def _two_sided_region(q: Quantity) -> bool:
    return math.isfinite(q.low) and math.isfinite(q.high)


def _inside(q: Quantity) -> bool:
    return q.low < q.estimate < q.high


def _p(q: Quantity) -> float:
    """p-value of the hypothesis that the true value is on the border of the region."""
    if _two_sided_region(q) and _inside(q):
        centre, half = (q.low + q.high) / 2, (q.high - q.low) / 2
        return stats.tost(q.estimate - centre, half, q.error, q.df)
    border = min((q.low, q.high), key=lambda end: abs(q.estimate - end))
    return stats.p_value(q.estimate, border, q.error, q.df)


def _check(q: Quantity, level: float) -> Check:
    if q.n < 2:
        interval = Interval(q.estimate, math.nan, math.nan, math.nan, q.n)
        return Check(q, interval, INCONCLUSIVE)
    # Two one-sided tests at `level` are an interval of level 1 - 2 level (Schuirmann 1987).
    tail = level if _two_sided_region(q) and _inside(q) else level / 2
    half = stats.t_quantile(1 - tail, q.df) * q.error
    low, high = q.estimate - half, q.estimate + half
    # Means of decimal fractions miss their border by rounding: 0.9 - 0.6 is not 0.3.
    slack = 1e-12 * max(1.0, abs(q.estimate))
    slack = -slack if q.strict else slack
    if low >= q.low - slack and high <= q.high + slack:
        verdict = SUPPORTED
    elif high < q.low - abs(slack) or low > q.high + abs(slack):
        verdict = REFUTED
    else:
        verdict = INCONCLUSIVE
    return Check(q, Interval(q.estimate, low, high, q.error * math.sqrt(q.n), q.n), verdict)


def _overall(test: Test, checks: Sequence[Check]) -> str:
    verdicts = {c.verdict for c in checks}
    if REFUTED in verdicts:
        return REFUTED
    return SUPPORTED if verdicts == {SUPPORTED} else INCONCLUSIVE


def _reason(test: Test, data: Measure, checks: Sequence[Check], verdict: str) -> str:
    """One sentence that names the deciding quantity, its interval and the border it is held to."""
    deciding = [c for c in checks if c.verdict == verdict]
    missing = [c for c in checks if c.quantity.n == 0]
    if verdict == INCONCLUSIVE and missing:
        places = [c.quantity.label for c in missing if c.quantity.label]
        where = f" at {places[0]}" + (" and elsewhere" if len(places) > 1 else "") if places else ""
        return f"There are no finished runs yet{where} ({len(missing)} of {len(checks)} missing)."
    if verdict == INCONCLUSIVE and any(c.quantity.n == 1 for c in deciding):
        c = next(c for c in deciding if c.quantity.n == 1)
        return f"{_measured(c)}: {ONE_SEED}."
    c = min(deciding, key=_clearance) if verdict == SUPPORTED else max(deciding, key=_clearance)
    sentence = f"{_measured(c)}, {_relation(c)}"
    if len(checks) > 1:
        tally = ", ".join(
            f"{sum(c.verdict == v for c in checks)} {v}"
            for v in (SUPPORTED, REFUTED, INCONCLUSIVE)
            if any(c.verdict == v for c in checks)
        )
        sentence += f" ({tally} of {len(checks)} comparisons, Holm-corrected)"
    return sentence + "." + _crossing(test, data, checks)


def _measured(c: Check) -> str:
    q = c.quantity
    where = f" at {q.label}" if q.label else ""
    return f"The {q.what}{where} is {span(c.interval)} over {count(q.n, 'seed')}"


def _clearance(c: Check) -> float:
    """How far the estimate is from the nearest border of the region."""
    q = c.quantity
    return min(abs(q.estimate - end) for end in (q.low, q.high) if math.isfinite(end))


def _relation(c: Check) -> str:
    q = c.quantity
    if _two_sided_region(q):
        region = (
            f"±{_border(q.high)}" if q.low == -q.high else f"{_border(q.low)} to {_border(q.high)}"
        )
        return {
            SUPPORTED: f"wholly within {region}",
            REFUTED: f"wholly outside {region}",
            INCONCLUSIVE: f"neither wholly within {region} nor outside",
        }[c.verdict]
    border, up = (q.low, True) if math.isfinite(q.low) else (q.high, False)
    if c.verdict == INCONCLUSIVE:
        return f"which includes {_border(border)}"
    above = up == (c.verdict == SUPPORTED)
    touches = border in (c.interval.low, c.interval.high)
    return f"{'at' if touches else 'wholly above' if above else 'wholly below'} {_border(border)}"


def _border(value: float) -> str:
    """A border as the claim states it, not rounded."""
    return f"{value:g}".replace("-", "−")


def _crossing(test: Test, data: Measure, checks: Sequence[Check]) -> str:
    """Says between which axis values the sign of the advantage turns."""
    if not isinstance(test, Crossover):
        return ""
    turns = []
    places = [p for p in data.points if matches(p, test.at)]
    for group in along_axis(places, test.along):
        values = [p.get(test.along) for p in group]
        ordered = sorted(
            zip(axis_positions(values), values, group, strict=True), key=lambda t: t[0]
        )
        region = (0.0, math.inf, True)
        signs = [
            (v, difference(data, test.a, test.b, p, test.at, "", region).estimate)
            for _, v, p in ordered
        ]
        for (v, before), (w, after) in zip(signs, signs[1:], strict=False):
            if before > 0 >= after:
                turns.append(f"{value_text(v)} and {value_text(w)}")
    return f" The means cross between {', '.join(dict.fromkeys(turns))}." if turns else ""
