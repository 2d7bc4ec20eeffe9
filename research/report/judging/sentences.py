"""Wording of verdicts: sentences generated from the test and its numbers."""

import math
from collections.abc import Sequence

from research.ablation.claims import Crossover, Direction, Equivalence, Test, Threshold, Trend
from research.ablation.measure import COSTS, TIMES, TURNS, Measure
from research.report.formatting import bracket, number, value_text
from research.report.judging.judgements import CANNOT_TELL, OPEN, REFUTED, Check
from research.report.judging.quantities import statistic_name
from research.report.judging.quantity import Quantity
from research.stats import ALPHA, Proportion, RankDifference, StudentT


def tested_text(test: Test, data: Measure, everywhere: bool) -> str:
    """Returns a sentence on what was tested, including the margin."""
    what, ending = statistic_name(data), " at every point" if everywhere else ""
    name = getattr(test, "along", "").rsplit(".", 1)[-1]
    match test:
        case Threshold():
            border = f"≥ {test.at_least:g}" if test.at_least is not None else f"≤ {test.at_most:g}"
            if data.solved is None and test.share is None:
                return f"Tested: the {what} of {test.arm} is {border}{ending}."
            share = (
                "most" if test.share in (None, 0.5) else f"more than {percent(test.share)} of the"
            )
            return f"Tested: {share} seeds of {test.arm} have {data.name} {border}{ending}."
        case Direction(a, b, margin):
            if data.kind == TIMES:
                return f"Tested: seeds of {a} tend to get there before those of {b}{ending}."
            lower = data.higher_is_better is False and data.solved is None
            than = "lower" if lower else "higher"
            by = f" by more than {_margin(data, margin)}" if margin else ""
            return (
                f"Tested: the {what} of {a} is {than} than that of {b}{by}{_solving(data)}{ending}."
            )
        case Equivalence(a, b, margin):
            return (
                f"Tested: the {what} of {a} and that of {b} differ by less than "
                f"{_margin(data, margin)}{_solving(data)}{ending}."
            )
        case Trend(arm, _, "flat", margin):
            return (
                f"Tested: the {what} of {arm} differs by less than {_margin(data, margin)} "
                f"between any two values of {name}{_solving(data)}."
            )
        case Trend(arm, _, direction, margin):
            verb = "rises" if direction == "increasing" else "falls"
            most = f"more than {_margin(data, margin)}"
            total = f", and by {most} from first to last" if margin else ""
            return (
                f"Tested: the {what} of {arm} {verb} from every value of {name} to the next{total}"
                f"{_solving(data)}."
            )
        case Crossover(a, b, _, value):
            if value is None:
                where = f"at the smallest {name} and worse at the largest"
            else:
                where = f"below {name} = {value_text(value)} and worse above"
            return f"Tested: {a} is better than {b} {where} ({what}{_solving(data)})."


def _margin(data: Measure, margin: float) -> str:
    return percent(margin) if data.kind == TURNS else f"{margin:g}"


def _solving(data: Measure) -> str:
    if data.solved is None:
        return ""
    sign = "≤" if data.higher_is_better is False else "≥"
    return f" ({data.name} {sign} {data.solved:g})"


def effect_text(checks: Sequence[Check], verdict: str, data: Measure, level: float) -> str:
    """Returns a sentence with the deciding number, its interval and the kind of interval."""
    known = [c for c in checks if c.quantity.estimate is not None]
    if not known:
        return ""
    deciding = [c for c in known if c.verdict == verdict] or known
    c = min(deciding, key=_clearance) if verdict != REFUTED else max(deciding, key=_clearance)
    q = c.quantity
    where = f" at {q.label}" if q.label else ""
    seeds = " and ".join(str(n) for n in dict.fromkeys(q.n))
    room = f", ± {number(q.allowance)} for the choice of tuned values" if q.allowance else ""
    of = f"{_of(q, data, level, seeds)}{room}"
    return f"{q.what[0].upper()}{q.what[1:]}{where}: {_value(q, c)} ({of})."


def _value(q: Quantity, c: Check) -> str:
    assert q.estimate is not None
    value = q.estimate.estimate
    if isinstance(q.estimate, Proportion):
        return f"{q.estimate.k} of {q.estimate.n}"
    return f"{number(value)} {bracket(c.low, c.high)}".strip()


def _of(q: Quantity, data: Measure, level: float, seeds: str) -> str:
    """Returns the description of an interval: its level, kind and number of seeds."""
    over = f"{seeds} seed{'' if seeds == '1' else 's'}"
    if data.kind == COSTS:
        return "the same for every seed"
    if data.kind == TURNS:
        rounds = f"{seeds} round{'' if seeds == '1' else 's'}"
        return f"{percent(1 - level)} interval, t, over {rounds} in which the arms took turns"
    if isinstance(q.estimate, RankDifference):
        return f"{over}, permutation test"
    if isinstance(q.estimate, Proportion):
        low, high = q.interval(level)
        bounds = []
        if low > 0:
            bounds.append(f"at least {low:.2f}")
        if high < 1:
            bounds.append(f"at most {high:.2f}")
        return (
            f"a probability of {' and '.join(bounds)}, one-sided {percent(1 - level)} bounds, exact"
        )
    if isinstance(q.estimate, StudentT) and q.estimate.caution > 1:
        kind = "t, widened for skewed outcomes"
        return f"{percent(1 - level)} interval, {kind}, over {over}{_items(q)}"
    kind = "exact" if data.solved is not None else "Welch"
    return f"{percent(1 - level)} interval, {kind}, over {over} of each{_items(q)}"


def _items(q: Quantity) -> str:
    """Returns " and 872 test items", or "" without their error."""
    return f" and {' and '.join(f'{m:,}' for m in q.items)} test items" if q.items else ""


def percent(share: float) -> str:
    """Returns "95 %", "98.3 %"."""
    return f"{100 * share:.3g} %"


def reason_text(
    data: Measure,
    verdict: str,
    checks: Sequence[Check],
    obstacle: str,
    level: float,
    family: int,
    primary: bool,
) -> str:
    """Returns sentences on why the verdict is not a stronger one."""
    parts = []
    if verdict == CANNOT_TELL:
        parts.append(f"{obstacle[0].upper()}{obstacle[1:]}.")
    elif verdict == OPEN:
        undecided = sum(c.verdict == verdict for c in checks)
        where = f" in {undecided} of {len(checks)} comparisons" if len(checks) > 1 else ""
        runs = "rounds" if data.kind == TURNS else "seeds"
        parts.append(f"The {runs} do not decide it{where}: {_border(checks, verdict)}.")
    elif len(checks) > 1:
        alike = sum(c.verdict == verdict for c in checks)
        parts.append(f"So in {alike} of {len(checks)} comparisons.")
    if family > 1 and level < ALPHA:
        parts.append(f"Corrected for {family} claims (Holm).")
    if not primary:
        parts.append(
            "Exploratory (declared so, or not there at the first run): not corrected for the "
            "number of claims."
        )
    return " ".join(parts)


def _border(checks: Sequence[Check], verdict: str) -> str:
    c = min((c for c in checks if c.verdict == verdict), key=_clearance)
    q = c.quantity
    borders = [f"{end:g}".replace("-", "−") for end in (q.low, q.high) if math.isfinite(end)]
    if isinstance(q.estimate, Proportion):
        return f"shares on both sides of {borders[0]} agree with them"
    return f"values on both sides of {' or '.join(borders)} agree with them"


def _clearance(c: Check) -> float:
    q = c.quantity
    if q.estimate is None:
        return math.inf
    ends = [end for end in (q.low, q.high) if math.isfinite(end)]
    return min(abs(q.estimate.estimate - end) for end in ends)
