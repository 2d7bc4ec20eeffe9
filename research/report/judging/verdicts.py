"""Passes verdicts on claims by applying their tests to the measured runs.

Every test reduces to one or more quantities (see `quantities`), each with the region in which the
claim says it lies. A claim is supported if every quantity is shown to lie in its region. This is an
intersection-union test (Berger 1982, Technometrics 24, 295-300), which takes the largest p-value
and needs no correction. It is refuted if one quantity is shown to lie outside, with Bonferroni
correction over the quantities. All primary claims of an experiment are one family, and Holm's
procedure bounds the probability of any false verdict among them by 5 %.

Verdicts without that guarantee are not passed. A claim gets "cannot tell", with the reason, if its
runs could not have decided it, or if the verdict depends on an arm that may not have converged (see
`convergence`), unless the claim is explicitly about these steps (`within_steps`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from research import stats
from research.ablation.claims import Claim, Crossover, Direction, Test, Trend
from research.ablation.measure import Measure
from research.report.formatting import point_text, value_text
from research.report.judging import sentences
from research.report.judging.axis_points import along_axis, axis_positions, matches
from research.report.judging.convergence import convergence_caveat
from research.report.judging.judgements import (
    CANNOT_TELL,
    OPEN,
    REFUTED,
    SUPPORTED,
    UNTESTED,
    Check,
    Judgement,
)
from research.report.judging.quantities import quantities
from research.report.judging.quantity import Quantity
from research.stats import ALPHA


@dataclass(frozen=True)
class _Evidence:
    """Test results for a claim, before the correction for other claims."""

    claim: Claim
    data: Measure
    quantities: Sequence[Quantity]
    obstacle: str
    support: float
    contradiction: float

    @property
    def p(self) -> float:
        return min(self.support, self.contradiction)


def judge(claim: Claim, measure: Callable[[str, str], Measure]) -> Judgement:
    """Returns the verdict on a single claim; arguments are as in `judge_all`."""
    return judge_all([claim], measure)[0]


def judge_all(
    claims: Sequence[Claim], measure: Callable[[str, str], Measure], alpha: float = ALPHA
) -> list[Judgement]:
    """Returns the verdicts on the claims of an experiment.

    Args:
      claims: the claims; the primary ones with a test are corrected together.
      measure: (metric, better) -> Measure; "" is the outcome of the experiment.
      alpha: probability of a false verdict on any of the primary claims, and on each exploratory
        claim.
    """
    found = [_weigh(claim, measure) for claim in claims]
    # A claim that cannot be decided stays in the family, because the size of the correction must
    # not depend on the results.
    family = [i for i, claim in enumerate(claims) if claim.primary and claim.test is not None]
    levels = dict.fromkeys(range(len(claims)), alpha)
    levels |= dict(zip(family, stats.holm_levels([found[i].p for i in family], alpha), strict=True))
    sizes = {i: len(family) if i in family else 1 for i in range(len(claims))}
    return [_decide(e, levels[i], sizes[i]) for i, e in enumerate(found)]


def _weigh(claim: Claim, measure: Callable[[str, str], Measure]) -> _Evidence:
    test = claim.test
    data = measure("", "") if test is None else measure(test.metric, getattr(test, "better", ""))
    if test is None:
        return _Evidence(claim, data, (), "", 1.0, 1.0)
    places = [p for p in data.points if matches(p, test.at)]
    obstacle = _lacking(test, data, places)
    if obstacle:
        return _Evidence(claim, data, (), obstacle, 1.0, 1.0)
    asked = quantities(test, data, places)
    # Supported only if all quantities are (intersection-union), refuted if any is (Bonferroni).
    support = max(q.support for q in asked)
    contradiction = min(1.0, min(q.contradiction for q in asked) * len(asked))
    return _Evidence(claim, data, asked, "", support, contradiction)


def _lacking(test: Test, data: Measure, places: Sequence[Mapping]) -> str:
    """Returns why the sweep cannot decide a claim at all; "" if it can."""
    if isinstance(test, Direction | Crossover) and data.higher_is_better is None:
        return f"the test needs to know whether higher or lower {data.name} is better"
    if not places:
        return f"the sweep has no point with {point_text(test.at)}"
    if not isinstance(test, Trend | Crossover):
        return ""
    for group in along_axis(places, test.along):
        x = axis_positions([p.get(test.along) for p in group])
        if len(x) < 2:
            return f"the sweep has fewer than two values of {test.along}"
        value = test.value if isinstance(test, Crossover) else None
        if value is not None and not min(x) < value < max(x):
            return f"the sweep has no values of {test.along} on both sides of {value_text(value)}"
    return ""


def _decide(evidence: _Evidence, level: float, family: int) -> Judgement:
    """Returns the judgement at a level that is already corrected for the other claims."""
    claim, test, data = evidence.claim, evidence.claim.test, evidence.data
    ours = _ours(claim, data, test.at if test else {})
    if test is None:
        effect = "Shown beside our figures; nothing is tested."
        return Judgement(claim, UNTESTED, effect, "", "", level, 1, (), ours)
    checks = [_check(q, level, len(evidence.quantities)) for q in evidence.quantities]
    obstacle = evidence.obstacle or next(
        (q.obstacle for q in evidence.quantities if q.obstacle), ""
    )
    if evidence.contradiction <= level:
        verdict = REFUTED
    elif obstacle:
        verdict = CANNOT_TELL
    else:
        verdict = SUPPORTED if evidence.support <= level else OPEN
    if verdict in (SUPPORTED, REFUTED) and not claim.within_steps:
        checks, obstacle = _without_doubts(checks, verdict, data)
        verdict = CANNOT_TELL if obstacle else verdict
    return Judgement(
        claim=claim,
        verdict=verdict,
        effect=sentences.effect_text(checks, verdict, data, level),
        tested=sentences.tested_text(test, data, len(data.points) > 1 and not test.at),
        why=sentences.reason_text(data, verdict, checks, obstacle, level, family, claim.primary),
        level=level,
        family=family,
        checks=checks,
        ours=ours,
    )


def _without_doubts(
    checks: Sequence[Check], verdict: str, data: Measure
) -> tuple[list[Check], str]:
    """Withdraws the checks that depend on an arm that may not have converged.

    Returns the checks, and why the verdict no longer holds ("" if it does): "supported" fails with
    a single withdrawn check; "refuted" holds as long as one refuting check remains.
    """
    doubts = [
        convergence_caveat(c.quantity, verdict == REFUTED, data) if c.verdict == verdict else ""
        for c in checks
    ]
    left = [
        replace(c, verdict=CANNOT_TELL) if d else c for c, d in zip(checks, doubts, strict=True)
    ]
    stands = verdict == REFUTED and any(c.verdict == REFUTED for c in left)
    return left, "" if stands else next((d for d in doubts if d), "")


def _check(q: Quantity, level: float, number: int) -> Check:
    low, high = q.interval(level)
    if q.contradiction * number <= level:
        verdict = REFUTED
    elif q.obstacle:
        verdict = CANNOT_TELL
    else:
        verdict = SUPPORTED if q.support <= level else OPEN
    return Check(q, low, high, verdict)


def _ours(claim: Claim, data: Measure, at: Mapping) -> dict[str, stats.Summary]:
    """Returns our summary of each published arm over the claim's points, one value per seed."""
    labels = claim.published if isinstance(claim.published, Mapping) else {}
    ours = {}
    for arm in labels:
        seeds: dict[int, list[float]] = {}
        for point in data.points:
            if matches(point, at):
                for seed, value in data.sample(arm, point).items():
                    seeds.setdefault(seed, []).append(value)
        if seeds:
            ours[arm] = stats.summary(stats.mean(v) for v in seeds.values())
    return ours
