"""The errors that the test items of a sweep add to its results: see `research.stats.items`.

They are read from the runs' items.npz, and kept in results.json as variances, which are all that
intervals and verdicts need.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from research.ablation.measure import Point, point_key
from research.report.judging.study import Run, Study, is_nan, metric_value
from research.runs import store
from research.stats import Component, ItemErrors, Results, deviations, item_errors

Place = tuple[str, Point]


def read_items(study: Study) -> dict[str, ItemErrors]:
    """Returns {metric: errors by place} of the outcome and of the metrics that claims name.

    Metrics without results of items are absent: slices, decoded text, runs without items.npz.
    Raises UserError for a damaged file.
    """
    outcome, groups = study.experiment.outcome, _groups(study)
    if outcome.split != "test":
        return {}
    arrays = {
        run.run: store.read_arrays(study.workdir / run.run / store.ITEMS)
        for runs in groups.values()
        for run in runs
    }
    claimed = [claim.test.metric for claim in study.experiment.claims if claim.test]
    found = {}
    for metric in dict.fromkeys([outcome.metric, *filter(None, claimed)]):
        results = {
            place: mean
            for place, runs in groups.items()
            if (mean := _averaged(study, runs, metric, arrays)) is not None
        }
        if results:
            found[metric] = item_errors(results, _pairs(results))
    return found


def _groups(study: Study) -> dict[Place, list[Run]]:
    """Returns {place: its runs that have a value of their own or count as the worst}."""
    groups: dict[Place, list[Run]] = {}
    for run in study.reported:
        if run.status in (store.COMPLETED, store.DIVERGED):
            groups.setdefault(run.key, []).append(run)
    return groups


def _averaged(
    study: Study, runs: Sequence[Run], metric: str, arrays: Mapping[str, Mapping[str, np.ndarray]]
) -> Results | None:
    """Returns the results of the items, averaged over runs; None if a run did not keep them."""
    outcome = study.experiment.outcome
    parts: list[Results] = []
    worst = 0
    for run in runs:
        # A diverged seed has the worst value on every sample of items.
        if run.status == store.DIVERGED or is_nan(run, metric_value(run, outcome, metric)):
            worst += 1
            continue
        own = arrays[run.run]
        total, count = (own.get(f"{outcome.at}.{metric}.{part}") for part in ("total", "count"))
        if total is None or count is None or not count.any():
            return None
        parts.append(Results(own["id"], deviations(total, count), count > 0))
    if not parts or any(not np.array_equal(part.ids, parts[0].ids) for part in parts):
        return None
    moved = np.sum([part.deviations for part in parts], axis=0) / (len(parts) + worst)
    return Results(parts[0].ids, moved, np.any([part.counted for part in parts], axis=0))


def _pairs(places: Iterable[Place]) -> Iterator[tuple[Place, Place]]:
    """Yields the pairs of places that tests compare: arms at a point, and points of an arm."""
    for a, b in combinations(places, 2):
        if a[0] == b[0] or a[1] == b[1]:
            yield a, b


def intervals_over(study: Study) -> str:
    """Returns what the intervals of the outcome are over, such as "seeds and test items"."""
    own = [(run.config.get("task") or {}).get("test_of_seed") for run in study.reported]
    if own and all(own):
        return "seeds, each with a test of its own"
    outcome = study.experiment.outcome
    errors = study.items.get(outcome.metric, ItemErrors())
    # What is compared with a threshold is the probability that a seed of these data reaches it.
    known = set(errors.means) if outcome.solved is None else set()
    if not known:
        return "seeds, on these test data"
    if known >= set(_groups(study)):
        return "seeds and test items"
    return "seeds, and over test items where the runs kept their results"


def items_to_json(found: Mapping[str, ItemErrors]) -> dict[str, Any]:
    """Returns the errors as JSON values.

    {metric: {"means": [[arm, point, variance, df] for each place],
              "differences": [[i, j, variance, df]]}} with i, j indices of places.
    """
    plain = {}
    for metric, errors in found.items():
        number = {place: i for i, place in enumerate(errors.means)}
        plain[metric] = {
            "means": [
                [arm, dict(point), *component] for (arm, point), component in errors.means.items()
            ],
            "differences": sorted(
                [*sorted(number[place] for place in pair), *component]
                for pair, component in errors.differences.items()
            ),
        }
    return plain


def items_from_json(plain: Mapping[str, Any]) -> dict[str, ItemErrors]:
    """Inverse of `items_to_json`."""
    found = {}
    for metric, errors in plain.items():
        rows = errors["means"]
        places = [(arm, point_key(point)) for arm, point, *_ in rows]
        means = {p: Component(*row[2:]) for p, row in zip(places, rows, strict=True)}
        differences = {
            frozenset((places[i], places[j])): Component(*component)
            for i, j, *component in errors["differences"]
        }
        found[metric] = ItemErrors(means, differences)
    return found
