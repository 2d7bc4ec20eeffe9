"""The outcome against what it costs: a mark per arm, and the frontier of the best."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from research import stats
from research.ablation.experiment import points
from research.ablation.measure import point_key
from research.drawing.chart import INK, MUTED, Chart, look, mark
from research.report.formatting import point_text
from research.report.judging.evidence import Study, measure
from research.report.tables import budget_table

TITLES = {
    "parameters": "parameters",
    "flops_per_token": "FLOPs per token",
    "state_bytes": "bytes of decoding state",
}


class Spot(NamedTuple):
    """Where an arm stands: its cost, the mean of its outcome and the outcome of each seed."""

    index: int
    arm: str
    cost: float
    mean: float
    seeds: tuple[float, ...]


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
            sample = [v for v in data.sample(arm, point).values() if math.isfinite(v)]
            # Costs that are the same at all points stand at none of them.
            cost = costs.get((arm, point_key(point)), costs.get((arm, ())))
            if sample and cost:
                spots.append(Spot(index, arm, cost, stats.mean(sample), tuple(sample)))
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
    costs = [s.cost for s in spots]
    if max(costs) / min(costs) >= 8:
        axes.set_xscale("log", base=2)
    else:
        axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(lambda value, _: amount(value, column))
    for spot in spots:
        style = look(spot.index)
        mean = axes.plot(
            [spot.cost], [spot.mean], style["marker"], color=style["color"], markersize=5.5
        )
        seeds = axes.plot(
            [spot.cost] * len(spot.seeds), spot.seeds, "_", color=style["color"], alpha=0.4
        )
        mark([*mean, *seeds], spot.index)
    best = best_for_cost(spots, bool(study.experiment.outcome.higher_is_better))
    axes.step(
        [s.cost for s in best],
        [s.mean for s in best],
        where="post",
        color=MUTED,
        linewidth=0.8,
        linestyle=(0, (4, 3)),
        zorder=1,
    )
    axes.margins(y=0.06)
    axes.autoscale_view()
    _names(figure, axes, [*best, *(s for s in spots if s not in best)])
    return figure


def amount(value: float, column: str) -> str:
    """Returns 4096 bytes as "4 KiB" and 4096 of anything else as "4.1k"."""
    step, units = (1024, (" B", " KiB", " MiB", " GiB")) if column == "state_bytes" else (
        1000, ("", "k", "M", "G")
    )  # fmt: skip
    power = 0
    while value >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    return f"{value:.3g}{units[power]}"


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
        across, up = 5.4 * len(name), 11
        own = (x - 4, y - 4, x + 4, y + 4)
        choices = itertools.product((7, -7 - across), (-up / 2, 4, -up - 4, 14, -up - 14))
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
