"""Claim cards of the page: the measured effect, the verdict, and why it is not stronger."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from research import stats
from research.report.formatting import (
    bracket,
    mean_and_range,
    number,
    point_text,
    typographic,
    value_text,
)
from research.report.judging.axis_points import matches
from research.report.judging.judgements import (
    CANNOT_TELL,
    OPEN,
    REFUTED,
    SUPPORTED,
    UNTESTED,
    Check,
    Judgement,
)
from research.report.judging.measuring import measure
from research.report.summary import Summary

SIGNS = {SUPPORTED: "✓", REFUTED: "✕", OPEN: "?", CANNOT_TELL: "∅", UNTESTED: "i"}
CLASSES = {verdict: verdict.replace(" ", "-") for verdict in SIGNS}
UNSEEN = (
    " The experiment names no threshold at which the task is solved: a failure that none of these "
    "seeds showed is in no interval."
)
MOST_CHECKS = 12
"""Maximum number of intervals drawn on a card."""


@dataclass(frozen=True)
class Bar:
    """An interval drawn on a track; positions are CSS lengths, "" for a missing part.

    Attributes:
      line: (left, right) of the interval.
      mean: left position of the dot.
      region: (left, right) of the claimed region.
      label, title: text before the track, and the tooltip.
      style: CSS class of the row.
    """

    line: tuple[str, str] | None
    mean: str
    region: tuple[str, str] | None = None
    label: str = ""
    title: str = ""
    style: str = ""


@dataclass(frozen=True)
class Card:
    """Content of one claim card; texts may be "".

    Attributes:
      text, source: text and source of the claim.
      effect: the measured number, with its interval and the kind of interval.
      ours: our measured results, with metric and split.
      verdict, sign, style: the verdict, its symbol and its CSS class.
      tested, why: what was tested, and why the verdict is not stronger.
      published: the published figures.
      bars, ends, more: intervals, the ends of their scale, and the number of intervals not drawn.
    """

    text: str
    source: str
    effect: str
    ours: str
    verdict: str
    sign: str
    style: str
    tested: str
    why: str
    published: str
    bars: Sequence[Bar]
    ends: tuple[str, str]
    more: int


def cards(summary: Summary) -> list[Card]:
    """Returns one card for each claim."""
    return [_card(summary, judgement) for judgement in summary.judgements]


def cards_note(summary: Summary) -> str:
    """Returns a note on the meaning of verdicts and their correction for multiple testing."""
    tally = {v: sum(j.verdict == v for j in summary.judgements) for v in SIGNS}
    said = ", ".join(f"{n} {verdict}" for verdict, n in tally.items() if n)
    added = len(summary.study.experiment.looks) - 1
    items = ", on these test data"
    if summary.study.items:
        items = ", and over test items where they say so, else on these test data"
    note = (
        f"{said}. A claim is supported when its interval lies wholly on the claimed side, refuted "
        "when wholly on the other, open when it includes the border. Of claims that these runs "
        "could not have decided it says “cannot tell” and why. Intervals are over seeds"
        f"{items}; the chance of a false verdict is at most 5 % over all claims together (Holm), "
        "for those not marked as exploratory."
    )
    if summary.study.experiment.outcome.solved is None:
        note += UNSEEN
    if added > 0:
        times = "once" if added == 1 else f"{added} times"
        note += f" Seeds were added {times}, for which levels are divided by {added + 1}."
    return note


def _card(summary: Summary, judgement: Judgement) -> Card:
    bars, ends, more = check_bars(judgement.checks)
    effect, ours = judgement.effect, results_text(summary, judgement)
    if ours and (not effect or judgement.claim.test is None):
        # Without a test, the measured results come first.
        effect, ours = f"{ours[0].upper()}{ours[1:]}.", ""
    return Card(
        text=judgement.claim.text,
        source=judgement.claim.source,
        effect=typographic(effect),
        ours=ours,
        verdict=judgement.verdict,
        sign=SIGNS[judgement.verdict],
        style=CLASSES[judgement.verdict],
        tested=typographic(judgement.tested),
        why=typographic(judgement.why),
        published=typographic(published_text(judgement)),
        bars=bars,
        ends=ends,
        more=more,
    )


def published_text(judgement: Judgement) -> str:
    """Returns the published figures of a claim in one line; "" if there are none.

    They come from other data and often use another metric, so they never share a table with ours.
    """
    figures = judgement.claim.published
    if isinstance(figures, Mapping):
        return "; ".join(f"{label}: {value_text(v)}" for label, v in figures.items())
    return value_text(figures) if figures not in (None, "") else ""


def results_text(summary: Summary, judgement: Judgement) -> str:
    """Returns our results for the claim's arms, with metric and split; "" if there are none."""
    claim, outcome = judgement.claim, summary.study.experiment.outcome
    labels = claim.published if isinstance(claim.published, Mapping) else ()
    known = summary.study.experiment.arms
    arms = [arm for arm in dict.fromkeys([*claim.arms(), *labels]) if arm in known]
    metric, at = (claim.test.metric, claim.test.at) if claim.test else ("", {})
    data = measure(summary.study, metric, getattr(claim.test, "better", ""))
    places = [point for point in data.points if matches(point, at)]
    parts = []
    for arm in arms:
        seeds: dict[int, list[float]] = {}
        for point in places:
            for seed, value in data.sample(arm, point).items():
                seeds.setdefault(seed, []).append(value)
        finite = [stats.mean(v) for v in seeds.values() if all(map(math.isfinite, v))]
        if finite:
            parts.append(f"{arm}: {mean_and_range(stats.summary(finite))}")
    if not parts:
        return ""
    several = f", mean over {len(places)} points" if len(places) > 1 else ""
    where = f" at {point_text(at)}" if at else ""
    name = data.name if "/" in data.name else f"{outcome.split} {data.name.replace('_', ' ')}"
    return f"{name}{where}{several}: {'; '.join(parts)}"


def check_bars(checks: Sequence[Check]) -> tuple[list[Bar], tuple[str, str], int]:
    """Returns the intervals to draw, the ends of their scale, and how many are left out."""
    drawn = [c for c in checks if math.isfinite(c.low + c.high)]
    if not drawn:
        return [], ("", ""), 0
    ends = [v for c in drawn for v in (c.low, c.high)]
    ends += [v for c in drawn for v in (c.quantity.low, c.quantity.high) if math.isfinite(v)]
    low, high = min(ends), max(ends)
    pad = 0.06 * ((high - low) or abs(high) or 1.0)
    scale = (low - pad, high + pad)
    bars = []
    for check in drawn[:MOST_CHECKS]:
        q = check.quantity
        mean = q.estimate.estimate if q.estimate else math.nan
        title = f"{q.label or q.what}: {number(mean)} {bracket(check.low, check.high)}"
        region = (max(q.low, scale[0]), min(q.high, scale[1]))
        line, dot = interval_css(mean, check.low, check.high, scale)
        style = CLASSES[check.verdict]
        title = f"{title}, {check.verdict}"
        bars.append(Bar(line, dot, _sides(*region, scale), q.label, title, style))
    return bars, (number(low), number(high)), len(drawn) - len(bars)


def interval_css(
    mean: float, start: float, end: float, scale: tuple[float, float]
) -> tuple[tuple[str, str] | None, str]:
    """Returns the CSS positions of a line from start to end, and of a dot at the mean."""
    line = None
    if math.isfinite(start + end):
        line = _sides(max(start, scale[0]), min(end, scale[1]), scale)
    return line, _at(mean, *scale) if math.isfinite(mean) else ""


def _sides(left: float, right: float, scale: tuple[float, float]) -> tuple[str, str]:
    low, high = scale
    return _at(left, low, high), _at(right, high, low)


def _at(value: float, low: float, high: float) -> str:
    return f"{100 * (value - low) / (high - low):.2f}%"
