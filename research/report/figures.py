"""Draws the figures of the report, each with a panel per axis point and family of arms."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from research import stats
from research.ablation.claims import SLICE
from research.ablation.experiment import points
from research.ablation.measure import Measure, point_key
from research.drawing.chart import MUTED, Chart, arm_style, styled, tag_artists
from research.report.arms import arm_indices, families
from research.report.facets import Place, arm_panels, axis_scale, panel_chart, slug, truncate
from research.report.formatting import point_text, short_keys
from research.report.frontier import cost_charts, frontier_chart
from research.report.judging.axis_points import along_axis, axis_positions
from research.report.judging.measuring import measure, sliced_metrics
from research.report.judging.study import Study, has_diverged
from research.report.outcome_figures import outcome_chart, steps_chart
from research.report.tables import Row
from research.report.tuning import learning_rate_chart

INSTEAD = ("error_rate", "accuracy", "loss")
"""Validation metrics whose curves replace that of an outcome without a curve, best first."""


def charts(study: Study, rows: Sequence[Row]) -> list[Chart]:
    """Returns the figures that have results; `rows` are the rows of the main table."""
    with styled():
        return [
            *outcome_chart(study, rows),
            *frontier_chart(study),
            *_axis_charts(study),
            *cost_charts(study),
            *_curves(study),
            *_slices(study),
            *steps_chart(study),
            *learning_rate_chart(study),
        ]


def _axis_charts(study: Study) -> Iterator[Chart]:
    data, experiment = measure(study), study.experiment
    names = short_keys(list(experiment.axes))
    outcome = experiment.outcome
    for key, values in experiment.axes.items():
        if len(values) < 2:
            continue
        places: list[Place] = []
        shares: list[Place] = []
        for group in along_axis(points(experiment), key):
            fixed = point_text({k: v for k, v in group[0].items() if k != key})
            if outcome.solved is not None:
                share = ", ".join(filter(None, ("share solved", fixed)))
                shares.append((share, (group, True)))
            seeds = fixed or ("every seed" if outcome.solved is not None else "")
            places.append((seeds, (group, False)))
        # Row by row, so that the panels of one place lie below each other.
        places = [*shares, *places]

        def draw(axes: Axes, place: Any, arms: Sequence[str], key=key, values=values) -> list:
            group, shares = place
            axes.set_xlabel(names[key])
            axis_scale(axes, values)
            x = axis_positions([p[key] for p in group])
            if shares:
                return _share_lines(axes, study, data, group, x, arms)
            return _lines(axes, study, data, group, x, arms)

        def has(place: Any, arm: str) -> bool:
            return any(_finite_values(data, arm, p) for p in place[0])

        title = f"{outcome.split} {outcome.metric} by {names[key]}"
        made = arm_panels(study, places, draw, has)
        yield from panel_chart(study, f"outcome-by-{slug(key)}", "axes", title, made)


def _finite_values(data: Measure, arm: str, point: Mapping) -> list[float]:
    return [v for v in data.sample(arm, point).values() if math.isfinite(v)]


def _lines(axes: Axes, study: Study, data: Measure, group, x, arms: Sequence[str]) -> list:
    """Draws every seed and, without a threshold, means and bands; returns the line ends."""
    ends, known, solved = [], arm_indices(study.experiment), data.solved
    for place, arm in enumerate(arms):
        shown = sorted(
            (at, values)
            for at, point in zip(x, group, strict=True)
            if (values := _finite_values(data, arm, point))
        )
        if not shown:
            continue
        number, color = known[arm]
        style = arm_style(color)
        xs, samples = [at for at, _ in shown], [stats.summary(v) for _, v in shown]
        aside = _aside(axes, 0.0 if solved is None else place - (len(arms) - 1) / 2)
        dots = [(at, v) for at, values in shown for v in values]
        artists: list = axes.plot(
            *zip(*dots, strict=True), style["marker"], color=style["color"], alpha=0.45,
            markersize=2.6, transform=aside, linestyle="none",
        )  # fmt: skip
        if solved is None:
            means = [s.mean for s in samples]
            low, high = [s.low for s in samples], [s.high for s in samples]
            artists.append(
                axes.fill_between(xs, low, high, color=style["color"], alpha=0.1, linewidth=0)
            )
            artists += axes.plot(xs, means, color=style["color"], linestyle=style["linestyle"])
        tag_artists(artists, number)
        ends.append((arm, samples[-1].mean))
    _limits(axes, data, group)
    if solved is not None:
        _solved_line(axes, study)
        _room(axes, x)
    return ends


def _room(axes: Axes, x: Sequence[float]) -> None:
    """Widens the x axis for dots that are shifted to the side."""
    low, high = min(x), max(x)
    if axes.get_xscale() == "log":
        factor = (high / low) ** 0.08
        axes.set_xlim(low / factor, high * factor)
    else:
        axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _aside(axes: Axes, shift: float):
    """Returns the data transform shifted sideways by `shift` dot widths."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return axes.transData + ScaledTranslation(shift * 3.2 / 72, 0, figure.dpi_scale_trans)


def _share_lines(axes: Axes, study: Study, data: Measure, group, x, arms: Sequence[str]) -> list:
    """Draws the share of seeds that solve the task, with exact 95 % intervals."""
    ends, known, outcome = [], arm_indices(study.experiment), study.experiment.outcome
    for place, arm in enumerate(arms):
        shown = []
        for at, point in zip(x, group, strict=True):
            values = list(data.sample(arm, point).values())
            if values:
                k = sum(outcome.reached(v) for v in values)
                shown.append((at, k / len(values), *stats.clopper_pearson(k, len(values))))
        if not shown:
            continue
        xs, shares, low, high = zip(*sorted(shown), strict=True)
        number, color = known[arm]
        style = arm_style(color)
        aside = _aside(axes, place - (len(arms) - 1) / 2)
        bars = axes.vlines(
            xs, low, high, color=style["color"], linewidth=0.9, alpha=0.6, transform=aside
        )
        tag_artists([*axes.plot(xs, shares, **style, transform=aside), bars], number)
        ends.append((arm, shares[-1]))
    axes.set_ylim(-0.04, 1.04)
    _room(axes, x)
    return ends


def _limits(axes: Axes, data: Measure, group: Sequence) -> None:
    """Sets the y limits from the values of all arms at a panel's points, except diverged seeds."""
    keys = {point_key(p) for p in group}
    values = [
        v
        for (_, place), sample in data.values.items()
        if place in keys
        for v in sample.values()
        if math.isfinite(v)
    ]
    if not values:
        return
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05 * max(abs(high), 1e-9)
    axes.set_ylim(low - pad, high + pad)


def _solved_line(axes: Axes, study: Study) -> None:
    solved = study.experiment.outcome.solved
    low, high = axes.get_ylim()
    if solved is not None and low <= solved <= high:
        axes.axhline(solved, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)


def _curves(study: Study) -> Iterator[Chart]:
    """Yields the figure of validation curves: the mean of each arm above thin lines per seed."""
    metric = curve_metric(study)
    key = f"validation/{metric}"
    curves: dict[tuple, list[tuple]] = {}
    for run in study.reported:
        pairs = [(row["step"], row[key]) for row in run.curve if _finite(row.get(key))]
        if pairs:
            lost = has_diverged(run, study.experiment.outcome)
            curves.setdefault(run.key, []).append((*zip(*pairs, strict=True), lost))

    def draw(axes: Axes, point: Any, arms: Sequence[str]) -> list:
        known = arm_indices(study.experiment)
        ends = [(arm, _arm_curve(axes, curves[arm, point_key(point)], known[arm])) for arm in arms]
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if metric == study.experiment.outcome.metric:
            _solved_line(axes, study)
        return ends

    def has(point: Any, arm: str) -> bool:
        return (arm, point_key(point)) in curves

    places = [(point_text(point), point) for point in points(study.experiment)]
    title = f"validation {metric} over steps"
    yield from panel_chart(study, "curves", "curves", title, arm_panels(study, places, draw, has))


def curve_metric(study: Study) -> str:
    """Returns the metric whose curves are drawn: the outcome, if it was measured in training.

    Metrics of decoded text, such as BLEU, are only known at the end; the metric that selected the
    best step replaces them.
    """
    outcome = study.experiment.outcome.metric
    logged = {key for run in study.reported for row in run.curve for key in row}
    found = (m for m in (outcome, *INSTEAD) if f"validation/{m}" in logged)
    return next(found, outcome)


def _arm_curve(axes: Axes, curves: Sequence[tuple], known: tuple[int, int]) -> float:
    """Draws the curves of an arm at a point; returns the last value of its mean curve."""
    number, color = known
    style = arm_style(color)
    by_step: dict[int, list[float]] = {}
    for steps, values, lost in curves:
        thin = axes.plot(steps, values, color=style["color"], alpha=0.35, linewidth=0.6)
        if lost:
            thin += axes.plot(steps[-1:], values[-1:], "x", color=style["color"], markersize=6)
        tag_artists(thin, number)
        for step, value in zip(steps, values, strict=True):
            by_step.setdefault(step, []).append(value)
    # The mean stops where the first seed ends, because it would jump as seeds drop out.
    whole = sorted((s, stats.mean(v)) for s, v in by_step.items() if len(v) == len(curves))
    if not whole:
        return curves[0][1][-1]
    steps, means = zip(*whole, strict=True)
    tag_artists(axes.plot(steps, means, color=style["color"], linestyle=style["linestyle"]), number)
    return means[-1]


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _slices(study: Study) -> Iterator[Chart]:
    """Yields one figure for each kind of slice, with the metrics that are sliced by it."""
    found: dict[str, list[str]] = {}
    for metric in sliced_metrics(study):
        found.setdefault(metric.rpartition("_by_")[2], []).append(metric)
    for by, metrics in found.items():
        own = f"{study.experiment.outcome.metric}_by_{by}"
        # The outcome comes first; with many arms it is drawn alone, to avoid a hundred panels.
        metrics = sorted(metrics, key=lambda metric: metric != own)
        if len(families(study.experiment)) > 1 and own in metrics:
            metrics = [own]
        places: list[Place] = []
        for metric in metrics:
            data = measure(study, metric)
            for group in along_axis(data.points, SLICE):
                name = metric.removesuffix(f"_by_{by}").replace("_", " ")
                where = point_text({k: v for k, v in group[0].items() if k != SLICE})
                title = ", ".join(filter(None, (name if len(metrics) > 1 else "", where)))
                places.append((title, (data, group)))

        def draw(axes: Axes, place: Any, arms: Sequence[str], by=by) -> list:
            data, group = place
            axes.set_xlabel(by.replace("_", " "))
            # Evenly spaced, because the labels are ranges of unequal width.
            ends = _lines(axes, study, data, group, range(len(group)), arms)
            labels = [truncate(str(p[SLICE]), 12) for p in group]
            room = max(2, min(8, 26 // (max(map(len, labels)) + 1)))
            every = math.ceil(len(labels) / room)
            axes.set_xticks(range(0, len(labels), every), labels[::every])
            return ends

        def has(place: Any, arm: str) -> bool:
            return any(_finite_values(place[0], arm, point) for point in place[1])

        name = metrics[0] if len(metrics) == 1 else f"by {by}"
        made = arm_panels(study, places, draw, has)
        yield from panel_chart(
            study, f"slices-by-{slug(by)}", "slices", name.replace("_", " "), made
        )
