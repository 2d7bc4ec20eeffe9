"""The outcome against what it costs: a mark per arm, and the frontier of the best."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research.ablation import statistics
from research.ablation.chart import INK, MUTED, Chart, look, mark
from research.ablation.evidence import Study, measure
from research.ablation.experiment import points
from research.ablation.statistics import point_key
from research.ablation.tables import budget_table
from research.ablation.wording import point_text

TITLES = {
    "parameters": "parameters",
    "flops_per_token": "FLOPs per token",
    "state_bytes": "bytes of decoding state",
}


class Spot(NamedTuple):
    """Where an arm stands: its cost, and mean and interval of its outcome."""

    index: int
    arm: str
    cost: float
    mean: float
    low: float
    high: float


def frontier_charts(study: Study) -> Iterator[Chart]:
    """Yields one chart per point of the axes, if the experiment says against what."""
    column = study.experiment.against
    if not column:
        return
    data = measure(study)
    costs = {
        (row.arm, point_key(row.point)): row.costs[column].value for row in budget_table(study)
    }
    for i, point in enumerate(points(study.experiment)):
        spots = []
        for index, arm in enumerate(study.experiment.arms):
            sample = list(data.values.get((arm, point_key(point)), {}).values())
            # Costs that are the same at all points stand at none of them.
            cost = costs.get((arm, point_key(point)), costs.get((arm, ())))
            if sample and cost:
                interval = statistics.t_interval(sample)
                mean, ends = interval.mean, (interval.low, interval.high)
                spots.append(Spot(index, arm, cost, mean, *ends))
        if spots:
            where = point_text(point)
            outcome = study.experiment.outcome
            title = f"{outcome.split} {outcome.metric} against {TITLES[column]}"
            title += f" ({where})" if where else ""
            yield Chart(f"frontier-{i}", "frontier", title, _draw(study, title, column, spots))


def best_for_cost(spots: Sequence[Spot], higher_is_better: bool) -> list[Spot]:
    """Returns the spots that no other one beats at the same cost or less, from cheap to dear."""
    sign = 1 if higher_is_better else -1
    found: list[Spot] = []
    for spot in sorted(spots, key=lambda s: (s.cost, -sign * s.mean)):
        if not found or sign * spot.mean > sign * found[-1].mean:
            found.append(spot)
    return found


def _draw(study: Study, title: str, column: str, spots: Sequence[Spot]) -> Figure:
    figure = Figure(figsize=(8.6, 4.6), layout=None)
    axes = figure.add_axes((0.07, 0.11, 0.9, 0.8))
    axes.set_title(title, loc="left", fontsize=9, pad=8)
    axes.set_xlabel(TITLES[column])
    costs, means = [s.cost for s in spots], [s.mean for s in spots]
    if max(costs) / min(costs) >= 8:
        axes.set_xscale("log", base=2)
    else:
        axes.margins(x=0.12)
    for spot in spots:
        style = look(spot.index)
        artists: list = axes.plot(
            [spot.cost], [spot.mean], style["marker"], color=style["color"], markersize=5.5
        )
        if not math.isnan(spot.low):
            bottom, top = min(means), max(means)
            low, high = max(spot.low, bottom - 0.05), min(spot.high, top + 0.05)
            artists.append(axes.vlines([spot.cost], low, high, color=style["color"], alpha=0.35))
        mark(artists, spot.index)
    best = best_for_cost(spots, study.experiment.outcome.higher_is_better)
    axes.step(
        [s.cost for s in best],
        [s.mean for s in best],
        where="post",
        color=MUTED,
        linewidth=0.8,
        linestyle=(0, (4, 3)),
        zorder=1,
    )
    low, high = min(means), max(means)
    pad = 0.06 * ((high - low) or 1.0)
    axes.set_ylim(low - pad, high + 1.5 * pad)
    _names(figure, axes, [*best, *(s for s in spots if s not in best)])
    return figure


def _names(figure: Figure, axes: Axes, spots: Sequence[Spot]) -> None:
    """Writes names where there is room for them, those on the frontier first.

    An arm whose name would lie on another name or mark stays without: the page names it on hover.
    """
    width, height = figure.get_size_inches() * figure.dpi
    taken = []
    for spot in spots:
        x, y = axes.transData.transform((spot.cost, spot.mean))
        taken.append((x - 4, y - 4, x + 4, y + 4))
    for spot in spots:
        x, y = axes.transData.transform((spot.cost, spot.mean))
        name = spot.arm if len(spot.arm) <= 28 else spot.arm[:27] + "…"
        across, up = 4.7 * len(name), 11
        own = (x - 4, y - 4, x + 4, y + 4)
        choices = itertools.product((6, -6 - across), (-up / 2, 3, -up - 3))
        for dx, dy in choices:
            box = (x + dx, y + dy, x + dx + across, y + dy + up)
            inside = box[0] > 0.05 * width and box[2] < 0.995 * width and box[3] < height
            if inside and not any(_overlap(box, other) for other in taken if other != own):
                taken.append(box)
                left, bottom = axes.transData.inverted().transform((box[0], box[1]))
                text = axes.text(left, bottom, name, fontsize=7, color=INK, va="bottom")
                mark([text], spot.index)
                break


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
