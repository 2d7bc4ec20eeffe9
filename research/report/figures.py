"""The charts of the report: small panels, drawn from a study."""

import itertools
import math
import re
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from research import stats
from research.ablation.claims import SLICE
from research.ablation.experiment import points
from research.ablation.measure import Measure, point_key
from research.drawing.chart import INK, MUTED, Chart, look, mark, styled
from research.report.formatting import point_text, short_keys, value_text
from research.report.frontier import frontier_charts
from research.report.judging.evidence import (
    Study,
    has_diverged,
    measure,
    sliced_metrics,
    steps_to_threshold,
)
from research.report.judging.quantities import along_axis, axis_positions
from research.runs import store


def charts(study: Study) -> list[Chart]:
    """Returns the charts for which there are results."""
    with styled():
        return [
            drawn
            for section in (frontier_charts, _axis_charts, _curves, _slices, _steps)
            for drawn in itertools.islice(section(study), LIMIT)
        ]


INSTEAD = ("error_rate", "accuracy", "loss")
"""Metrics of validation whose curves stand in for that of an outcome without any, best first."""

LIMIT = 24
"""Most charts of a section: nobody reads more, and each takes a tenth of a second."""

WIDTH = 4.3
"""Inches of every panel: narrow enough that its text can be read on a phone."""


def _panel(title: str, height: float = 2.75) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout=None)
    axes = figure.add_axes((0.125, 0.16, 0.63, 0.72))
    axes.set_title(_cut(title, 56), loc="left", fontsize=9, pad=8, x=-0.17)
    return figure, axes


def _cut(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _end_labels(axes: Axes, ends: Sequence[tuple[int, str, float]]) -> None:
    """Writes each arm's name at the height where its line ends, moved apart where they collide.

    More names than there are lines of text stay away: the page brings an arm forward by its name.
    """
    gap = 0.062  # of the height of the axes: a line of text
    if not ends or gap * len(ends) > 1.1:
        return
    low, high = axes.get_ylim()
    placed = sorted(((y - low) / (high - low), index, name) for index, name, y in ends)
    heights = [y for y, _, _ in placed]
    for _ in range(60):
        for i in range(1, len(heights)):
            overlap = gap - (heights[i] - heights[i - 1])
            if overlap > 0:
                heights[i - 1] -= overlap / 2
                heights[i] += overlap / 2
        shift = max(0.0, -heights[0]) - max(0.0, heights[-1] - 1)
        heights = [h + shift for h in heights]
    for height, (_, index, name) in zip(heights, placed, strict=True):
        text = axes.text(
            1.025,
            height,
            _cut(name, 17),
            color=look(index)["color"],
            transform=axes.transAxes,
            va="center",
            fontsize=8,
        )
        mark([text], index)


def _lines(axes: Axes, study: Study, data: Measure, group: Sequence, x: Sequence[float]) -> bool:
    """Draws each arm's mean and extremes at the points; returns whether there was any."""
    ends = []
    for index, arm in enumerate(study.experiment.arms):
        samples = [[v for v in data.sample(arm, p).values() if math.isfinite(v)] for p in group]
        shown = [(a, stats.summary(s)) for a, s in zip(x, samples, strict=True) if s]
        if not shown:
            continue
        shown.sort(key=lambda pair: pair[0])
        xs, means = [a for a, _ in shown], [i.mean for _, i in shown]
        low, high = [i.low for _, i in shown], [i.high for _, i in shown]
        style = look(index)
        band = axes.fill_between(xs, low, high, color=style["color"], alpha=0.1, linewidth=0)
        bars = axes.vlines(xs, low, high, color=style["color"], linewidth=1.1)
        mark([*axes.plot(xs, means, **style), band, bars], index)
        ends.append((index, arm, means[-1]))
    _limits(axes, study, data)
    _end_labels(axes, ends)
    return bool(ends)


def _limits(axes: Axes, study: Study, data: Measure) -> None:
    """The values set the scale, without those of seeds that diverged."""
    values = [v for sample in data.values.values() for v in sample.values() if math.isfinite(v)]
    if not values:
        return
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.05 * max(abs(high), 1e-9)
    bottom, top = axes.get_ylim()
    room = 0.25 * (high - low) or pad
    axes.set_ylim(max(bottom, low - room) - pad / 2, min(top, high + room) + pad / 2)


def _axis_scale(axes: Axes, values: Sequence) -> None:
    x = axis_positions(values)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numbers and min(x) > 0 and max(x) / min(x) >= 8:
        axes.set_xscale("log")
    axes.minorticks_off()
    every = max(1, math.ceil(len(x) / 9))
    axes.set_xticks(x[::every], [_cut(value_text(v), 10) for v in values[::every]])


def _axis_charts(study: Study) -> Iterator[Chart]:
    data, experiment = measure(study), study.experiment
    names = short_keys(list(experiment.axes))
    drawn = [(key, values) for key, values in experiment.axes.items() if len(values) > 1]
    for key, values in drawn:
        for i, group in enumerate(along_axis(points(experiment), key)):
            fixed = point_text({k: v for k, v in group[0].items() if k != key})
            title = f"{_outcome_name(study)} by {names[key]}" + (f" ({fixed})" if fixed else "")
            figure, axes = _panel(title)
            axes.set_xlabel(names[key])
            _axis_scale(axes, values)
            if _lines(axes, study, data, group, axis_positions([p[key] for p in group])):
                _solved_line(axes, study)
                yield Chart(f"outcome-by-{_slug(key)}-{i}", "axes", title, figure)
    if not drawn:
        for i, point in enumerate(points(experiment)):
            values = {
                arm: [v for v in data.sample(arm, point).values() if math.isfinite(v)]
                for arm in experiment.arms
            }
            title = f"{_outcome_name(study)}: every seed, and the mean"
            if any(values.values()):
                yield Chart(f"outcome-{i}", "axes", title, _strip(title, values))


def _outcome_name(study: Study) -> str:
    return f"{study.experiment.outcome.split} {study.experiment.outcome.metric}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "x"


def _solved_line(axes: Axes, study: Study) -> None:
    solved = study.experiment.outcome.solved
    low, high = axes.get_ylim()
    if solved is not None and low <= solved <= high:
        axes.axhline(solved, color=MUTED, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)


def _strip(
    title: str, values: dict[str, list[float]], never: dict[str, int] | None = None
) -> Figure:
    """One line per arm: every seed a dot, and the mean.

    With `never`, {arm: seeds that have no value because they never got there}, the median instead,
    where half of the seeds have one, and the count at the right edge.
    """
    height = 0.75 + 0.27 * len(values)
    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes((0.3, 0.42 / height, 0.66, 1 - 0.75 / height))
    axes.set_title(_cut(title, 56), loc="left", fontsize=9, pad=8, x=-0.44)
    axes.grid(False)
    axes.grid(True, axis="x")
    finite = [v for sample in values.values() for v in sample]
    span = (max(finite) - min(finite)) if finite else 0.0
    edge = (max(finite) if finite else 0.0) + 0.12 * (span or 1.0)
    for index, (arm, sample) in enumerate(values.items()):
        color, marker = look(index)["color"], look(index)["marker"]
        artists: list = axes.plot(
            sample, [index - 0.16] * len(sample), marker, color=color, alpha=0.45, markersize=4
        )
        if never is None and sample:
            centre = stats.mean(sample)
            artists += axes.plot([centre], [index + 0.14], marker, color=color, markersize=5.5)
        missed = (never or {}).get(arm, 0)
        middle = stats.median([*sample, *[math.inf] * missed])
        if never is not None and math.isfinite(middle):
            artists += axes.plot([middle], [index + 0.16], "|", color=color, markersize=9)
        if missed:
            text = axes.text(edge, index, f"{missed}× never", va="center", color=color, fontsize=8)
            artists.append(text)
        mark(artists, index)
    axes.set_yticks(range(len(values)), [_cut(arm, 20) for arm in values])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(values) - 0.4, -0.6)
    if finite:
        right = edge + 0.3 * (span or 1.0) if never and any(never.values()) else max(finite)
        pad = 0.04 * ((right - min(finite)) or abs(right) or 1.0)
        axes.set_xlim(min(finite) - pad, right + pad)
    return figure


def _curves(study: Study) -> Iterator[Chart]:
    """Validation metric over training steps: the mean of each arm over thin lines of its seeds."""
    metric = curve_metric(study)
    for i, point in enumerate(points(study.experiment)):
        where = point_text(point)
        title = f"validation {metric} over steps" + (f" ({where})" if where else "")
        figure, axes = _panel(title)
        ends = []
        for index, arm in enumerate(study.experiment.arms):
            end = _arm_curve(axes, study, index, (arm, point_key(point)), metric)
            if end is not None:
                ends.append((index, arm, end))
        if not ends:
            continue
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if metric == study.experiment.outcome.metric:
            _solved_line(axes, study)
        _end_labels(axes, ends)
        yield Chart(f"curve-{i}", "curves", title, figure)


def curve_metric(study: Study) -> str:
    """Returns the metric whose curves are drawn: the outcome, if it was measured in training.

    What is decoded, such as BLEU, is known at its end only; what chose the best step stands in.
    """
    outcome = study.experiment.outcome.metric
    logged = {key for run in study.reported for row in run.curve for key in row}
    found = (m for m in (outcome, *INSTEAD) if f"validation/{m}" in logged)
    return next(found, outcome)


def _arm_curve(axes: Axes, study: Study, index: int, arm: tuple, metric: str) -> float | None:
    """Draws the curves of an arm at a point; returns the height at which its mean ends."""
    key, style = f"validation/{metric}", look(index)
    by_step: dict[int, list[float]] = {}
    drawn = 0
    for run in study.reported:
        pairs = [(row["step"], row[key]) for row in run.curve if _finite(row.get(key))]
        if run.key != arm or not pairs:
            continue
        drawn += 1
        steps, values = zip(*pairs, strict=True)
        thin = axes.plot(steps, values, color=style["color"], alpha=0.35, linewidth=0.6)
        if has_diverged(run, study.experiment.outcome):
            thin += axes.plot(steps[-1:], values[-1:], "x", color=style["color"], markersize=6)
        mark(thin, index)
        for step, value in pairs:
            by_step.setdefault(step, []).append(value)
    # A mean over fewer and fewer seeds would jump as they end: it stops with the first of them.
    whole = sorted((s, stats.mean(v)) for s, v in by_step.items() if len(v) == drawn)
    if not whole:
        return None
    steps, means = zip(*whole, strict=True)
    line = axes.plot(steps, means, color=style["color"], linestyle=style["linestyle"])
    mark(line, index)
    return means[-1]


def _finite(value) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _slices(study: Study) -> Iterator[Chart]:
    for metric in sliced_metrics(study):
        data = measure(study, metric)
        for i, group in enumerate(along_axis(data.points, SLICE)):
            where = point_text({k: v for k, v in group[0].items() if k != SLICE})
            title = f"{metric.replace('_', ' ')}" + (f" ({where})" if where else "")
            figure, axes = _panel(title)
            by = metric.rpartition("_by_")[2]
            axes.set_xlabel(by.replace("_", " "))
            # At even distances: the labels are ranges of unequal width.
            if _lines(axes, study, data, group, range(len(group))):
                labels = [_cut(str(p[SLICE]), 14) for p in group]
                room = max(2, min(9, 45 // (max(map(len, labels)) + 1)))
                every = math.ceil(len(labels) / room)
                axes.set_xticks(range(0, len(labels), every), labels[::every])
                yield Chart(f"slices-{_slug(metric)}-{i}", "slices", title, figure)


def _steps(study: Study) -> Iterator[Chart]:
    outcome = study.experiment.outcome
    if outcome.solved is None:
        return
    sign = "≥" if outcome.higher_is_better else "≤"
    for i, point in enumerate(points(study.experiment)):
        values: dict[str, list[float]] = {}
        never: dict[str, int] = {}
        for arm in study.experiment.arms:
            runs = [r for r in study.reported if r.key == (arm, point_key(point))]
            ended = [r for r in runs if r.status in (store.COMPLETED, store.DIVERGED)]
            first = [steps_to_threshold(r, outcome) for r in ended]
            values[arm] = [float(step) for step in first if step is not None]
            never[arm] = first.count(None)
        where = point_text(point)
        title = f"first step with validation {outcome.metric} {sign} {outcome.solved:g}"
        title += f" ({where})" if where else ""
        if any(values.values()):
            yield Chart(f"steps-{i}", "steps", title, _strip(title, values, never))
