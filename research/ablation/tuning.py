"""Which of the tuned values an arm takes: the best on validation."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from research.ablation.claims import Outcome
from research.ablation.measure import Point, point_key
from research.stats import mean


def choose(
    outcome: Outcome, cells: Iterable[Mapping], results: Mapping[str, Mapping]
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


def tuning_score(outcome: Outcome, results: Sequence[Mapping | None]) -> tuple[int, float]:
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
