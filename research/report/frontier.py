"""Draws costs: the outcome against one, with the Pareto frontier; time and memory along an axis."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox, IdentityTransform

from research import stats
from research.ablation.experiment import points
from research.ablation.measure import point_key
from research.drawing.chart import INK, MUTED, Chart, arm_style, tag_artists
from research.report.arms import arm_indices, row_colors
from research.report.facets import WIDE, arm_panels, axis_scale, elide_middle, panel_chart, slug
from research.report.formatting import point_text, short_keys
from research.report.judging.axis_points import along_axis, axis_positions
from research.report.judging.measuring import measure
from research.report.judging.study import Study
from research.report.tables import budget_table

TITLES = {
    "parameters": "parameters",
    "flops_per_token": "FLOPs per token",
    "state_bytes": "bytes of decoding state",
}


class FrontierPoint(NamedTuple):
    """An arm in the plane of cost and outcome: cost, mean outcome, outcome per seed, color."""

    index: int
    arm: str
    cost: float
    mean: float
    seeds: tuple[float, ...]
    color: int = 0


def frontier_chart(study: Study) -> Iterator[Chart]:
    """Yields one figure, a panel per axis point, if the experiment names a cost (`against`)."""
    column = study.experiment.against
    if not column:
        return
    data = measure(study)
    costs = {
        (row.arm, point_key(row.point)): row.costs[column].value for row in budget_table(study)
    }
    colors = row_colors(study.experiment)
    panels = []
    for point in points(study.experiment):
        spots = []
        for index, arm in enumerate(study.experiment.arms):
            sample = [v for v in data.sample(arm, point).values() if math.isfinite(v)]
            # Costs that are equal at all points are stored under the empty point.
            cost = costs.get((arm, point_key(point)), costs.get((arm, ())))
            if sample and cost:
                mean = stats.mean(sample)
                spots.append(FrontierPoint(index, arm, cost, mean, tuple(sample), colors[arm]))
        if spots:
            panels.append((point_text(point), spots))
    if panels:
        outcome = study.experiment.outcome
        title = f"{outcome.split} {outcome.metric} against {TITLES[column]}"
        higher = bool(outcome.higher_is_better)
        yield Chart("frontier", "frontier", title, _figure(title, panels, column, higher))


def best_for_cost(spots: Sequence[FrontierPoint], higher_is_better: bool) -> list[FrontierPoint]:
    """Returns the Pareto frontier, spots that none beats at equal or lower cost, cheapest first."""
    sign = 1 if higher_is_better else -1
    found: list[FrontierPoint] = []
    for spot in sorted(spots, key=lambda s: (s.cost, -sign * s.mean)):
        if not found or sign * spot.mean > sign * found[-1].mean:
            found.append(spot)
    return found


def _figure(
    title: str, panels: Sequence[tuple[str, Sequence[FrontierPoint]]], column: str, higher: bool
) -> Figure:
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    height = 4.4 if columns == 1 else 3.2
    head = 0.35 if any(where for where, _ in panels) else 0.12
    total = height * rows + 0.3
    figure = Figure(figsize=(WIDE, total), layout=None)
    figure.text(0.12 / WIDE, 1 - 0.17 / total, title, fontsize=9.5, color=INK, va="center")
    for i, (where, spots) in enumerate(panels):
        row, across = divmod(i, columns)
        width = 1 / columns
        axes = figure.add_axes(
            (
                width * across + 0.55 / WIDE,
                (height * (rows - 1 - row) + 0.5) / total,
                width - 0.75 / WIDE,
                (height - 0.5 - head) / total,
            )
        )
        axes.set_title(where, loc="left", fontsize=8.5, pad=6)
        _panel(axes, column, spots, higher)
        _names(figure, axes, [*best_for_cost(spots, higher), *spots])
    return figure


def _panel(axes: Axes, column: str, spots: Sequence[FrontierPoint], higher: bool) -> None:
    axes.set_xlabel(TITLES[column])
    costs = [s.cost for s in spots]
    if max(costs) / min(costs) >= 8:
        axes.set_xscale("log", base=2)
    axes.margins(x=0.12, y=0.06)
    axes.xaxis.set_major_formatter(lambda value, _: format_cost(value, column))
    for spot in spots:
        style = arm_style(spot.color)
        mean = axes.plot(
            [spot.cost], [spot.mean], style["marker"], color=style["color"], markersize=5.5
        )
        seeds = axes.plot(
            [spot.cost] * len(spot.seeds), spot.seeds, "_", color=style["color"], alpha=0.4
        )
        tag_artists([*mean, *seeds], spot.index)
    best = best_for_cost(spots, higher)
    axes.step(
        [s.cost for s in best],
        [s.mean for s in best],
        where="post",
        color=MUTED,
        linewidth=0.8,
        linestyle=(0, (4, 3)),
        zorder=1,
    )
    axes.autoscale_view()


def format_cost(value: float, column: str) -> str:
    """Formats a cost: 4096 bytes as "4 KiB", 4096 of anything else as "4.1k"."""
    step, units = (1024, (" B", " KiB", " MiB", " GiB")) if column == "state_bytes" else (
        1000, ("", "k", "M", "G")
    )  # fmt: skip
    power = 0
    while value >= step and power < len(units) - 1:
        value, power = value / step, power + 1
    return f"{value:.3g}{units[power]}"


def _names(figure: Figure, axes: Axes, spots: Sequence[FrontierPoint]) -> None:
    """Writes the names of arms where there is room, in the order of the spots.

    A name that would overlap another name or a mark is left out; the page shows it on hover.
    """
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = axes.get_tightbbox(renderer)
    assert frame is not None
    marks = {spot.arm: axes.transData.transform((spot.cost, spot.mean)) for spot in spots}
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in marks.values()]
    named = set()
    for spot in spots:
        if spot.arm in named:
            continue
        named.add(spot.arm)
        text = axes.text(0, 0, elide_middle(spot.arm, 28), fontsize=7, color=INK, va="bottom")
        text.set_transform(IdentityTransform())
        size = text.get_window_extent(renderer)
        text.remove()
        x, y = marks[spot.arm]
        for dx, dy in itertools.product((7, -7 - size.width), (-size.height / 2, 4, -4, 12, -12)):
            up = dy - (size.height if dy in (-4, -12) else 0)
            box = Bbox.from_bounds(x + dx, y + up, size.width, size.height)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 + 12 and frame.y0 < box.y0
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                left, bottom = axes.transData.inverted().transform((box.x0, box.y0))
                written = axes.text(
                    left, bottom, elide_middle(spot.arm, 28), fontsize=7, color=INK, va="bottom"
                )
                tag_artists([written], spot.index)
                break


def cost_charts(study: Study) -> Iterator[Chart]:
    """Yields, for each axis, the measured time per token and memory of a training step."""
    experiment, names = study.experiment, short_keys(list(study.experiment.axes))
    times = {
        (c.arm, point_key(c.point)): [1e6 * s / c.tokens for s in c.seconds]
        for c in study.costs.rows
    }
    memory = {
        (c.arm, point_key(c.point)): [c.memory_bytes / 2**20]
        for c in study.costs.rows
        if c.memory_bytes is not None
    }
    for key, values in experiment.axes.items():
        places = [
            (", ".join(filter(None, (title, fixed))), (group, found))
            for title, found in (("µs per token", times), ("MiB of a step", memory))
            for group in along_axis(points(experiment), key)
            for fixed in [point_text({k: v for k, v in group[0].items() if k != key})]
        ]

        def draw(axes: Axes, place: Any, arms: Sequence[str], key=key, values=values) -> list:
            group, found = place
            axes.set_xlabel(names[key])
            axis_scale(axes, values)
            axes.set_yscale("log")
            # Plain numbers: formulas such as 10^1 are not drawn, see `chart.STYLE`.
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            x = axis_positions([p[key] for p in group])
            return _cost_lines(axes, study, found, group, x, arms)

        def has(place: Any, arm: str) -> bool:
            return any((arm, point_key(p)) in place[1] for p in place[0])

        title = f"cost of a training step by {names[key]}"
        made = arm_panels(study, places, draw, has)
        yield from panel_chart(study, f"cost-by-{slug(key)}", "axes", title, made)


def _cost_lines(axes: Axes, study: Study, found: Mapping, group, x, arms: Sequence[str]) -> list:
    """Draws the median of the rounds, and a bar from the fastest to the slowest; returns ends."""
    ends, known = [], arm_indices(study.experiment)
    for arm in arms:
        shown = sorted(
            (at, sorted(found[arm, point_key(p)]))
            for at, p in zip(x, group, strict=True)
            if (arm, point_key(p)) in found
        )
        xs, middles = [at for at, _ in shown], [stats.median(values) for _, values in shown]
        number, color = known[arm]
        style = arm_style(color)
        low, high = [values[0] for _, values in shown], [values[-1] for _, values in shown]
        bars = axes.vlines(xs, low, high, color=style["color"], linewidth=0.9, alpha=0.6)
        tag_artists([*axes.plot(xs, middles, **style), bars], number)
        ends.append((arm, middles[-1]))
    return ends
