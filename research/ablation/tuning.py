"""Chooses each arm's tuned values on validation, and extends grids whose best value is at an edge.

If the best value lies at the edge of its grid, a better one may lie outside, and an arm whose grid
ends too early is at a disadvantage. The grid is then extended, one value at a time, separately for
each arm at each point, up to a limit. Extensions depend only on finished results, so a sweep that
was killed, or is split into shards, adds the same values.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.ablation.claims import Outcome
from research.ablation.experiment import Experiment, tune_seed_list
from research.ablation.measure import Point, point_key
from research.stats import choice_deviation, mean

Score = tuple[int, float]
"""(minus the number of seeds without a finite value, mean of the others signed so that larger is
better); compared as a tuple, larger is better."""
Scores = Sequence[tuple[Mapping[str, Any], Score]]
"""(combination of tuned values, its score) pairs of one arm at one point, in grid order."""

EVEN = 1.25
"""Ratios of neighbouring values count as equal within this factor: 1, 3, 10 has 3 and 3.3."""


def choose(
    outcome: Outcome, cells: Iterable[Mapping], results: Mapping[str, Mapping]
) -> dict[tuple[str, Point], dict[str, Any]]:
    """Returns {(arm, point): tuned values}, the combination that is best on validation.

    The score of a combination is its mean validation outcome over the tuning seeds, taken at
    `outcome.at`. A seed that diverged, failed or has no number counts as lost, and a combination
    with fewer lost seeds is always preferred, whatever the means. Ties go to the first combination
    in grid order.

    Args:
      outcome: metric, direction, and whether to read "best" or "final".
      cells: rows of cells.json in grid order; rows of the report stage are ignored.
      results: {run id: result.json}. An (arm, point) with a missing result is left out: a choice
        from part of the grid would depend on where the sweep was interrupted.
    """
    return {key: best(scores) for key, scores in tuning_scores(outcome, cells, results).items()}


def tuning_scores(
    outcome: Outcome, cells: Iterable[Mapping], results: Mapping[str, Mapping]
) -> dict[tuple[str, Point], Scores]:
    """Returns the scores of every (arm, point) with finished tuning; arguments as in `choose`."""
    grid: dict[tuple[str, Point], dict[Point, list[Mapping | None]]] = {}
    tuned: dict[Point, dict[str, Any]] = {}
    for cell in cells:
        if cell["stage"] != "tune":
            continue
        group = grid.setdefault((cell["arm"], point_key(cell["point"])), {})
        combination = point_key(cell["tuned"])
        tuned.setdefault(combination, dict(cell["tuned"]))
        group.setdefault(combination, []).append(results.get(cell["run"]))
    return {
        key: [(tuned[c], tuning_score(outcome, runs)) for c, runs in group.items()]
        for key, group in grid.items()
        if all(result is not None for runs in group.values() for result in runs)
    }


def best(scores: Scores) -> dict[str, Any]:
    """Returns the combination with the best score; ties go to the first."""
    return dict(max(scores, key=lambda row: row[1])[0])


def tuning_score(outcome: Outcome, results: Sequence[Mapping | None]) -> Score:
    """Returns the score of a combination from the results of its tuning seeds."""
    values = [scalar_metric(r, outcome.at, "validation", outcome.metric) for r in results]
    finite = [v for v in values if v is not None]
    sign = 1 if outcome.higher_is_better else -1
    return len(finite) - len(values), sign * mean(finite) if finite else -math.inf


def scalar_metric(result: Mapping | None, at: str, split: str, metric: str) -> float | None:
    """Returns a scalar metric of result.json; None if the run is incomplete or it is no number."""
    if not result or result.get("status") != "completed":
        return None
    value = ((result.get(at) or {}).get(split) or {}).get(metric)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def choice_deviations(
    outcome: Outcome, cells: Sequence[Mapping], results: Mapping[str, Mapping], metric: str = ""
) -> dict[tuple[str, Point], float]:
    """Returns {(arm, point): standard deviation that tuning adds to the compared statistic}.

    With few tuning seeds, another draw of them might have chosen other values. This is estimated
    from the validation metrics of the tuning runs; an (arm, point) is left out if they do not
    suffice, for example with a single tuning seed.

    Args:
      outcome: outcome that the choice was made by.
      cells, results: as in `choose`.
      metric: metric whose mean is compared; "": the outcome, or the share of seeds that solve the
        task.
    """
    found = {}
    for key, scores in tuning_scores(outcome, cells, results).items():
        fewest = max(score[0] for _, score in scores)
        # A combination with more lost seeds is never chosen, whatever the scores of the others.
        kept = [point_key(tuned) for tuned, score in scores if score[0] == fewest]
        own = [c for c in cells if c["stage"] == "tune"]
        own = [c for c in own if (c["arm"], point_key(c["point"])) == key]
        grid = [[results[c["run"]] for c in own if point_key(c["tuned"]) == t] for t in kept]
        chosen_by = [_validation(group, outcome, outcome.metric) for group in grid]
        values = [_validation(group, outcome, metric or outcome.metric) for group in grid]
        if not all(chosen_by) or not all(values):
            continue
        if not metric and outcome.solved is not None:
            values = [[float(outcome.reached(v)) for v in group] for group in values]
        sign = 1 if outcome.higher_is_better else -1
        signed = [[sign * v for v in group] for group in chosen_by]
        deviation = choice_deviation(signed, [mean(group) for group in values])
        if math.isfinite(deviation):
            found[key] = deviation
    return found


def _validation(results: Sequence[Mapping], outcome: Outcome, metric: str) -> list[float]:
    values = [scalar_metric(result, outcome.at, "validation", metric) for result in results]
    return [v for v in values if v is not None]


def keys_at_edge(scores: Scores) -> list[str]:
    """Returns the keys whose best value is the smallest or the largest of its grid.

    A key is left out if another value of it did equally well, since then there is no sign of a
    better value outside. A grid with one value has no edges, and one of names has no order.
    """
    chosen, found = best(scores), []
    top = max(score for _, score in scores)
    for key, value in chosen.items():
        values = [combination[key] for combination, _ in scores]
        ordered = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        if not ordered or min(values) == max(values) or min(values) < value < max(values):
            continue
        if not any(score == top and c[key] != value for c, score in scores):
            found.append(key)
    return found


def next_grid_value(values: Iterable[Any], up: bool) -> float | None:
    """Returns the next value of a grid of floats in roughly equal ratios; None for other grids.

    Alternating ratios keep alternating: 1e-3, 3e-3, 1e-2 continues with 3e-2 above and 3e-4 below.
    """
    found = sorted(set(values))
    if len(found) < 2 or not all(isinstance(v, float) and v > 0 for v in found):
        return None
    ratios = [b / a for a, b in itertools.pairwise(found)]
    if max(ratios) > EVEN * min(ratios):
        return None
    # Take the second ratio from the end, if there is one, so that alternating ratios alternate on.
    ratio = (ratios[-2:] if up else ratios[:2][::-1])[0]
    return float(f"{found[-1] * ratio if up else found[0] / ratio:.3g}")


def next_extension(experiment: Experiment, scores: Scores) -> tuple[str, float] | None:
    """Returns the option and the value that a grid is continued by; None where it is complete."""
    chosen = best(scores)
    for key in keys_at_edge(scores):
        values = [combination[key] for combination, _ in scores]
        first, up = experiment.tune[key], chosen[key] == max(values)
        beyond = {v for v in values if (v > max(first) if up else v < min(first))}
        value = next_grid_value(values, up)
        if value is not None and len(beyond) < experiment.tune_extend:
            return key, value
    return None


def possible_values(experiment: Experiment) -> dict[str, list[float]]:
    """Returns {tuned key: values that tuning may add to its grid}; keys without any are absent."""
    found = {}
    for key, values in experiment.tune.items():
        sides = []
        for up in (False, True):
            grid = list(values)
            for _ in range(experiment.tune_extend):
                value = next_grid_value(grid, up)
                if value is None:
                    break
                grid.append(value)
            sides += grid[len(values) :]
        if sides:
            found[key] = sides
    return found


def extension_text(experiment: Experiment) -> str:
    """Returns a sentence on the values that tuning may add to a sweep; "" if there are none."""
    keys = possible_values(experiment)
    if not keys:
        return ""
    each = len(tune_seed_list(experiment))
    return (
        "Tuning may add runs: where the best value of an arm lies at the edge of its grid, "
        f"{' and '.join(keys)} is continued by up to {experiment.tune_extend} values a side, "
        f"{each} run{'' if each == 1 else 's'} to a value (tune_extend=0: never)."
    )
