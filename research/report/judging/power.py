"""Power analysis: what the planned number of seeds can show, before training.

For an outcome with a `solved` threshold, power is known without a pilot, because each seed either
solves the task or does not. For a mean it depends on the spread over seeds: the minimum detectable
difference is given in standard deviations, and also in units of the metric if finished runs (a
pilot, tuning runs) show the spread. Where all seeds share the items of one test set, its error is
part of the difference, and stays however many seeds there are.
"""

import math
from collections.abc import Iterator

from scipy.stats import binom

from research import stats
from research.ablation.claims import Claim, Direction, Equivalence, Threshold
from research.ablation.experiment import Experiment, seed_list
from research.ablation.tuning import scalar_metric
from research.report.formatting import count, number
from research.report.judging.quantities import MOST_SEEDS
from research.report.judging.study import Study
from research.stats import ALPHA, Proportion, ProportionDifference

OFTEN, SELDOM = 0.9, 0.1
"""Probabilities of solving the task for which the power of a comparison is stated."""


def power_lines(experiment: Experiment, pilot: Study | None = None) -> list[str]:
    """Returns one line for each kind of test among the claims: what the planned seeds can show.

    Args:
      experiment: the experiment, with its seeds drawn.
      pilot: finished runs of the experiment, to estimate the spread over seeds.
    """
    n = len(seed_list(experiment))
    family = sum(claim.primary and claim.test is not None for claim in experiment.claims)
    level = ALPHA / max(1, family) / max(1, len(experiment.looks))
    lines = dict.fromkeys(_lines(experiment, n, level, pilot))
    if not lines:
        return []
    head = f"{count(n, 'seed')}, {count(family, 'claim')} corrected together:"
    return [head, *(f"  {line}" for line in lines)]


def _lines(experiment: Experiment, n: int, level: float, pilot: Study | None) -> Iterator[str]:
    for claim in experiment.claims:
        test = claim.test
        solving = experiment.outcome.solved is not None and not getattr(test, "metric", "")
        if isinstance(test, Direction | Equivalence) and not solving:
            yield _difference(experiment, claim, n, level, pilot)
        elif isinstance(test, Direction):
            yield _solving(test.margin, n, level)
        elif isinstance(test, Threshold) and (solving or test.share is not None):
            yield _share(0.5 if test.share is None else test.share, n, level)


def _solving(margin: float, n: int, level: float) -> str:
    """Returns the power to tell an arm that solves the task in 90 % of seeds from one in 10 %."""

    def shown(k1: int, k2: int, seeds: int) -> bool:
        return 2 * ProportionDifference(k1, seeds, k2, seeds).p_above(margin) <= level

    needed = _first(lambda seeds: shown(seeds, 0, seeds))
    power = math.fsum(
        binom.pmf(i, n, OFTEN) * binom.pmf(j, n, SELDOM)
        for i in range(n + 1)
        for j in range(n + 1)
        if shown(i, j, n)
    )
    beyond = f" by more than {margin:g}" if margin else ""
    return (
        f"that one arm solves the task more often than another{beyond} takes {needed}; of arms "
        f"that solve it in 90 % and 10 % of seeds, {n} show it with a probability of {power:.2f}"
    )


def _share(share: float, n: int, level: float) -> str:
    def shown(k: int, seeds: int) -> bool:
        return Proportion(k, seeds).p_above(share) <= level

    needed = _first(lambda seeds: shown(seeds, seeds))
    power = math.fsum(binom.pmf(k, n, OFTEN) for k in range(n + 1) if shown(k, n))
    return (
        f"that more than {100 * share:g} % of seeds reach a threshold takes {needed}; where 90 % "
        f"do, {n} show it with a probability of {power:.2f}"
    )


def _difference(
    experiment: Experiment, claim: Claim, n: int, level: float, pilot: Study | None
) -> str:
    """Returns a text on the smallest difference of means that is found with 80 % power."""
    if n < 2:
        return "a difference of means takes at least 2 seeds"
    smallest = stats.minimum_detectable_effect(math.sqrt(2 / n), 2 * n - 2, level)
    text = f"a difference of means is found with 80 % power from {smallest:.1f} sd of seeds on"
    metric = getattr(claim.test, "metric", "") or experiment.outcome.metric
    sd, df = _spread(metric, pilot)
    if not df:
        return text
    found = f"by the sd of {number(sd)} over finished seeds, {df} degrees of freedom"
    items = _item_error(claim, metric, pilot)
    if items is None:
        return f"{text} ({metric}: {number(smallest * sd)}, {found})"
    # As the interval of a difference is made: the squared errors of seeds and of items add up.
    both = stats.added_error([stats.Component(2 * sd**2 / n, 2 * n - 2), items])
    smallest, least = (
        stats.minimum_detectable_effect(*error, level)
        for error in (both, stats.added_error([items]))
    )
    return (
        f"{text} ({metric}: {number(smallest)}, {found}, and the error of {items.df + 1:,.0f} test "
        f"items; {number(least)} with any number of seeds)"
    )


def _item_error(claim: Claim, metric: str, pilot: Study | None) -> stats.Component | None:
    """Returns the largest error that shared test items add to the difference of the claim's arms.

    None if the pilot has not kept it.
    """
    if pilot is None or not isinstance(claim.test, Direction | Equivalence):
        return None
    arms = {claim.test.a, claim.test.b}
    errors = pilot.items.get(metric, stats.ItemErrors()).differences
    own = [error for pair, error in errors.items() if {arm for arm, _ in pair} == arms]
    return max(own, default=None)


def _spread(metric: str, pilot: Study | None) -> tuple[float, int]:
    """Returns the pooled deviation over seeds, on validation, and its degrees of freedom."""
    groups: dict[tuple, list[float]] = {}
    for run in pilot.runs if pilot else ():
        outcome = pilot.experiment.outcome if pilot else None
        value = scalar_metric(run.result, outcome.at if outcome else "best", "validation", metric)
        if value is not None:
            key = (run.key, run.stage, tuple(sorted(run.tuned.items())))
            groups.setdefault(key, []).append(value)
    return stats.pooled_deviation(groups.values())


def _first(shown) -> str:
    found = next((seeds for seeds in range(2, MOST_SEEDS) if shown(seeds)), None)
    return f"at least {count(found, 'seed')}" if found else f"more than {MOST_SEEDS} seeds"
