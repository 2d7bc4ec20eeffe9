"""The statistics of the report, as plain functions of numbers. Imports no jax.

Only `scipy.special` is used: the t distribution is all that is needed, and `scipy.stats` takes most
of a second to import. Samples without variance (every seed at exactly 1.0) are ordinary here: tasks
that are solved are solved exactly. A test on them takes the limit of the t statistic.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scipy.special import nctdtr, ndtri, stdtr, stdtrit

if TYPE_CHECKING:
    from research.ablation.experiment import Outcome

ALPHA = 0.05
"""Two-sided error rate of every test and interval: intervals are 95 % intervals."""

POWER = 0.8
"""Power at which the minimum detectable effect is stated."""

Point = tuple[tuple[str, Any], ...]
"""An axis point as a sorted tuple of (key, value), so that it can be a dictionary key."""

Sample = Mapping[int, float]
"""{seed: value} of one arm at one point."""


def point_key(point: Mapping[str, Any]) -> Point:
    """Returns the point as a sorted tuple; lists inside it become tuples."""
    return tuple(sorted((key, _hashable(value)) for key, value in point.items()))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(v) for v in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, in the units of the sample.

    Attributes:
      mean: the estimate.
      low, high: ends of the interval; NaN when one seed gives no interval.
      sd: sample standard deviation (divisor n - 1); NaN for n = 1.
      n: number of seeds.
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """The difference of two arms, a - b, and its test.

    Attributes:
      difference: mean difference with its two-sided interval.
      p: two-sided p-value of "no difference"; NaN when there are too few seeds.
      error: standard error of the difference.
      df: degrees of freedom of the t distribution.
      method: "paired", "welch" or "none" (too few seeds).
    """

    difference: Interval
    p: float
    error: float
    df: float
    method: str


@dataclass(frozen=True)
class Measure:
    """One quantity of every reported run.

    Attributes:
      name: how the report calls it.
      values: {(arm, point): {seed: value}}; a seed without a value is absent.
      points: the points that should exist, in the order of the axes.
      higher_is_better: direction, or None when neither is better.
    """

    name: str
    values: Mapping[tuple[str, Point], Sample]
    points: Sequence[Mapping[str, Any]]
    higher_is_better: bool | None


def mean(values: Iterable[float]) -> float:
    """Returns the arithmetic mean, exactly rounded; NaN of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def deviation(values: Iterable[float]) -> float:
    """Returns the sample standard deviation (divisor n - 1); NaN for fewer than two values.

    Differences within floating-point noise of the values count as none: 0.3 - 0.2 and 0.4 - 0.3
    are the same improvement, and a t statistic of 1e15 would be an artefact.
    """
    values = list(values)
    if len(values) < 2:
        return math.nan
    centre = mean(values)
    sd = math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1))
    return sd if sd > 1e-12 * max(1e-300, *(abs(v) for v in values)) else 0.0


def t_quantile(probability: float, df: float) -> float:
    """Returns the quantile of Student's t distribution."""
    return float(stdtrit(df, probability))


def t_interval(values: Iterable[float], alpha: float = ALPHA) -> Interval:
    """Returns the mean with its two-sided Student-t interval of level 1 - alpha."""
    values = list(values)
    n, centre, sd = len(values), mean(values), deviation(values)
    if n < 2:
        return Interval(centre, math.nan, math.nan, math.nan, n)
    half = t_quantile(1 - alpha / 2, n - 1) * sd / math.sqrt(n)
    return Interval(centre, centre - half, centre + half, sd, n)


def median(values: Iterable[float]) -> float:
    """Returns the median; the mean of the middle two for an even count; NaN of nothing."""
    values = sorted(values)
    if not values:
        return math.nan
    low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
    return low if low == high else (low + high) / 2


def median_interval(values: Iterable[float], alpha: float = ALPHA) -> tuple[float, float]:
    """Returns the order-statistic interval of the median, of level at least 1 - alpha.

    The interval between the k-th smallest and k-th largest value misses the median with
    probability 2 P(Binomial(n, 1/2) < k) (Conover, Practical Nonparametric Statistics, 3.2). With
    fewer than six seeds even the extremes miss it more often than 5 %: then both ends are NaN.
    """
    values = sorted(values)
    n, k, missed = len(values), 0, 0.0
    while k < n // 2:
        missed += 2 * math.comb(n, k) / 2**n
        if missed > alpha:
            break
        k += 1
    return (values[k - 1], values[n - k]) if k else (math.nan, math.nan)


def wilson(successes: int, n: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion (Wilson 1927, JASA 22, 209-212)."""
    if n == 0:
        return math.nan, math.nan
    z = float(ndtri(1 - alpha / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At 0 and n the exact ends are 0 and 1; rounding would miss them by 1e-17.
    low = 0.0 if successes == 0 else centre - half
    return low, 1.0 if successes == n else centre + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's step-down adjusted p-values (Holm 1979, Scand. J. Stat. 6, 65-70).

    NaN stays NaN and is not counted: a comparison that could not be made costs nothing.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, running = [math.nan] * len(p_values), 0.0
    for rank, (p, i) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        adjusted[i] = running
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float = ALPHA) -> list[float]:
    """Returns the level at which Holm's procedure tests each hypothesis.

    An interval of level 1 - level excludes the hypothesis exactly when Holm rejects it. The first
    hypothesis that is not rejected ends the procedure, so the later ones are held at its level.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    levels, level, stopped = [alpha] * len(p_values), alpha, False
    for rank, (p, i) in enumerate(order):
        if not stopped:
            level = alpha / (len(order) - rank)
            stopped = p > level
        levels[i] = level
    return levels


def compare(a: Sample, b: Sample, alpha: float = ALPHA) -> Comparison:
    """Compares two arms: paired t test on the shared seeds, Welch's when fewer than two are shared.

    The same seed gives both arms the same data in the same order, so pairing removes that part of
    the noise. Seeds that only one arm has are left out of a paired comparison.
    """
    shared = sorted(set(a) & set(b))
    if len(shared) >= 2:
        difference = t_interval([a[s] - b[s] for s in shared], alpha)
        error, df = difference.sd / math.sqrt(difference.n), difference.n - 1.0
        p = p_value(difference.mean, 0.0, error, df)
        return Comparison(difference, p, error, df, "paired")
    n = min(len(a), len(b))
    centre = mean(a.values()) - mean(b.values())
    if n < 2:
        return Comparison(
            Interval(centre, math.nan, math.nan, math.nan, n), math.nan, math.nan, math.nan, "none"
        )
    va, vb = deviation(a.values()) ** 2 / len(a), deviation(b.values()) ** 2 / len(b)
    error = math.sqrt(va + vb)
    # Welch-Satterthwaite; without any variance the degrees of freedom do not matter.
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)) if error else n - 1.0
    half = t_quantile(1 - alpha / 2, df) * error
    difference = Interval(centre, centre - half, centre + half, error * math.sqrt(n), n)
    return Comparison(difference, p_value(centre, 0.0, error, df), error, df, "welch")


def p_value(estimate: float, hypothesis: float, error: float, df: float) -> float:
    """Returns the two-sided p-value of "the true value is `hypothesis`".

    Without variance it is the limit: 1 when the estimate is the hypothesis, else 0.
    """
    if math.isnan(error):
        return math.nan
    distance = abs(estimate - hypothesis)
    if error == 0:
        return 1.0 if distance <= 1e-12 * max(abs(estimate), abs(hypothesis)) else 0.0
    return min(1.0, 2 * float(stdtr(df, -distance / error)))


def tost(estimate: float, margin: float, error: float, df: float) -> float:
    """Returns the p-value of two one-sided tests of |true value| < margin (Schuirmann 1987).

    It is below alpha exactly when the two-sided interval of level 1 - 2 alpha lies within the
    margin.
    """
    if math.isnan(error):
        return math.nan
    if error == 0:
        return 0.0 if abs(estimate) < margin else 1.0
    return float(stdtr(df, -(margin - abs(estimate)) / error))


def minimum_detectable_effect(
    error: float, df: float, alpha: float = ALPHA, power: float = POWER
) -> float:
    """Returns the true difference a two-sided t test finds with probability `power`.

    Args:
      error: standard error of the difference, in units of the outcome.
      df: its degrees of freedom.

    Solved on the noncentral t distribution (Cohen 1988, ch. 2). 0 without variance, NaN when there
    are too few seeds.
    """
    if math.isnan(error) or error == 0:
        return error
    critical = t_quantile(1 - alpha / 2, df)

    def found(shift: float) -> float:
        # Rejecting on the wrong side is left out: at this power it has a probability below 1e-6,
        # and scipy returns NaN for it.
        return 1 - float(nctdtr(df, shift, critical))

    low, high = 0.0, critical
    while found(high) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high * error


def choose(
    outcome: "Outcome", cells: Iterable[Mapping], results: Mapping[str, Mapping]
) -> dict[tuple[str, Point], dict[str, Any]]:
    """Returns {(arm, point): tuned values}: the best combination on validation.

    The score of a combination is its mean validation outcome over the tuning seeds, taken at
    `outcome.at`. A seed that diverged, failed or has no number counts as worst: any combination
    with fewer such seeds is preferred, whatever the means. Ties go to the first in grid order.

    Args:
      outcome: metric, direction and whether "best" or "final" is read.
      cells: rows of cells.json in grid order; those of the report stage are ignored.
      results: {run id: result.json}. An (arm, point) with a cell that has none is left out:
        choosing on half of the grid would depend on where the sweep was stopped.
    """
    grid: dict[tuple[str, Point], dict[Point, list[Mapping | None]]] = {}
    tuned: dict[Point, dict[str, Any]] = {}
    for cell in cells:
        if cell["stage"] != "tune":
            continue
        group = grid.setdefault((cell["arm"], point_key(cell["point"])), {})
        combination = point_key(cell["tuned"])
        tuned.setdefault(combination, dict(cell["tuned"]))
        group.setdefault(combination, []).append(results.get(cell["run"]))
    chosen = {}
    for key, group in grid.items():
        if any(result is None for runs in group.values() for result in runs):
            continue
        scores = {c: tuning_score(outcome, runs) for c, runs in group.items()}
        chosen[key] = tuned[max(scores, key=lambda c: scores[c])]
    return chosen


def tuning_score(outcome: "Outcome", results: Sequence[Mapping | None]) -> tuple[int, float]:
    """Returns (minus the seeds without a number, oriented mean of the others); larger is better."""
    values = [scalar(r, outcome.at, "validation", outcome.metric) for r in results]
    finite = [v for v in values if v is not None]
    sign = 1 if outcome.higher_is_better else -1
    return len(finite) - len(values), sign * mean(finite) if finite else -math.inf


def scalar(result: Mapping | None, at: str, split: str, metric: str) -> float | None:
    """Returns a scalar of result.json, or None when the run did not complete or it is no number."""
    if not result or result.get("status") != "completed":
        return None
    value = ((result.get(at) or {}).get(split) or {}).get(metric)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None
