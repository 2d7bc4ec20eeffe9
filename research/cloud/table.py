"""Formats plans as text: a table of targets for one run, and a table of arms for an experiment."""

from collections.abc import Iterable, Sequence

from research.cloud.collectives import total_by_kind
from research.cloud.estimate import UTILIZATION
from research.cloud.forecast import Forecast, Row

GB = 1e9
RANGE = (
    "Not compiled: a formula, which gave 0.84 to 1.08 of the temporaries that were compiled with "
    "remat and fused attention, and 0.8 to 1.2 of others."
)


def plan_table(title: str, forecasts: Sequence[Forecast]) -> str:
    """Returns the plan of one run as a table with a column for each target."""
    first = forecasts[0]
    lines = [
        ("", [f.target.name for f in forecasts]),
        ("devices", [f"{f.target.devices} ({f.layout})" for f in forecasts]),
        ("implementation", [_implementation(f) for f in forecasts]),
        ("memory of a device, GB", [""] * len(forecasts)),
        *((f"  {name}", [f"{getattr(f.estimate.memory, name) / GB:.3g}" for f in forecasts])
          for name in first.estimate.memory._fields),
        ("  total", [f"{f.estimate.memory.total / GB:.3g}" for f in forecasts]),
        ("  compiled: kept + temporaries", [_compiled(f) for f in forecasts]),
        ("  of", [f"{f.target.memory / GB:.3g}" for f in forecasts]),
        ("", [verdict(f) for f in forecasts]),
        ("FLOPs per step: model's", [f"{f.estimate.model_flops:.3g}" for f in forecasts]),
        ("  the device's, with remat", [f"{f.estimate.flops:.3g}" for f in forecasts]),
        *_collectives(forecasts),
        ("time of a step, s", [_number(f.seconds, ".3g") for f in forecasts]),
        ("tokens/s", [_rate(f) for f in forecasts]),
        ("model FLOPs utilization", [_percent(f.utilization) for f in forecasts]),
        (f"hours for {first.steps:,} steps", [_number(f.hours, ".3g") for f in forecasts]),
        ("cost on demand", [dollars(f.cost()) for f in forecasts]),
        ("  spot", [dollars(f.cost(spot=True)) for f in forecasts]),
    ]  # fmt: skip
    members = f", {first.members} members" if first.members > 1 else ""
    head = f"{title}: {first.estimate.parameters:,} parameters{members}"
    return "\n".join(
        [head, *_aligned([(name, *cells) for name, cells in lines]), *_notes(forecasts)]
    )


def rows_table(title: str, rows: Sequence[Row]) -> str:
    """Returns the plan of an experiment as a table: a row for each arm and point, and totals."""
    head = (
        "arm",
        "point",
        "runs",
        "implementation",
        "memory of a device",
        "s per step",
        "hours",
        "on demand",
        "spot",
    )
    body = []
    for row in rows:
        worst = max(row.forecasts, key=lambda f: f.needed)
        point = ", ".join(f"{k.split('.')[-1]}={v}" for k, v in row.point.items())
        times = (_number(worst.seconds, ".3g"), _number(row.hours, ".2f"))
        costs = (dollars(row.cost()), dollars(row.cost(True)))
        body.append((row.arm, point, str(row.runs), _kinds(row), verdict(worst), *times, *costs))
    known = [row for row in rows if row.hours is not None]
    hours = sum(row.hours or 0.0 for row in known) if len(known) == len(rows) else None
    totals = [_total([row.cost(spot) for row in rows]) for spot in (False, True)]
    runs = str(sum(row.runs for row in rows))
    body.append(("total", "", runs, "", "", "", _number(hours, ".2f"), *map(dollars, totals)))
    forecasts = [f for row in rows for f in row.forecasts]
    return "\n".join([title, *_aligned([head, *body]), *_differing(rows), *_notes(forecasts)])


def _kinds(row: Row) -> str:
    """Returns the implementations of an arm's mixers, without repetition."""
    return " + ".join(dict.fromkeys(f.estimate.implementation for f in row.forecasts))


def _differing(rows: Sequence[Row]) -> list[str]:
    """Returns a line that says which arms run other programs than the others; [] if none does.

    Times of such arms differ for two reasons: what is computed, and how.
    """
    points: dict[str, dict[str, str]] = {}
    for row in rows:
        points.setdefault(repr(row.point), {})[row.arm] = _kinds(row)
    arms: dict[str, list[str]] = {}
    for kinds in points.values():
        for arm, kind in kinds.items() if len(set(kinds.values())) > 1 else ():
            arms.setdefault(kind, []).append(arm)
    if not arms:
        return []
    parts = "; ".join(f"{kind}: {', '.join(dict.fromkeys(names))}" for kind, names in arms.items())
    return [
        f"Arms differ in implementation ({parts}): their times compare programs, not mechanisms "
        "alone. model.implementation, in common, sets one for all."
    ]


def verdict(forecast: Forecast) -> str:
    """Returns "fits" or "does not fit: 3.2 GB over"."""
    over = (forecast.needed - forecast.target.memory) / GB
    if over > 0:
        return f"does not fit: {over:.1f} GB over"
    return f"fits ({forecast.needed / GB:.3g} GB)"


def dollars(cost: float | None) -> str:
    """Returns "$12.30", or "-"."""
    return "-" if cost is None else f"${cost:,.2f}"


def _total(costs: list[float | None]) -> float | None:
    return None if None in costs else sum(c for c in costs if c is not None)


def _implementation(f: Forecast) -> str:
    kernels = f", {f.compiled.kernels} kernel calls" if f.compiled else ""
    return f.estimate.implementation + kernels


def _compiled(f: Forecast) -> str:
    if f.compiled is None:
        return "-"
    return f"{f.compiled.arguments / GB:.3g} + {f.compiled.temporaries / GB:.3g}"


def _collectives(forecasts: Sequence[Forecast]) -> list[tuple[str, list[str]]]:
    """Returns rows on the bytes that a device sends, by collective; [] if nothing was compiled."""
    found = [total_by_kind(f.compiled.collectives) if f.compiled else {} for f in forecasts]
    if not any(f.compiled for f in forecasts):
        return []
    rows = [
        (
            f"  {kind}",
            [f"{k[kind][1] / GB:.3g} GB in {k[kind][0]:,.0f}" if kind in k else "-" for k in found],
        )
        for kind in sorted({kind for kinds in found for kind in kinds})
    ]
    blank = [""] * len(forecasts)
    return [("sent by a device per step", blank), *(rows or [("  nothing", ["-"] * len(found))])]


def _rate(f: Forecast) -> str:
    return "-" if f.seconds is None else f"{f.tokens / f.seconds:,.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _notes(forecasts: Iterable[Forecast]) -> list[str]:
    """Returns notes on the reliability of the figures."""
    forecasts = list(forecasts)
    notes = list(dict.fromkeys(f.corpus for f in forecasts if f.corpus))
    if any(f.seconds for f in forecasts):
        notes.append(
            f"Times: products at {UTILIZATION:.0%} of peak; waiting for memory and links, "
            "evaluation and starting come on top."
        )
    if not all(f.compiled for f in forecasts):
        notes.append(RANGE)
    for price in {f.price.generation: f.price for f in forecasts if f.price}.values():
        notes.append(
            f"Price of {price.generation}: {price.region}, looked up {price.date}, certainty "
            f"{price.sure}."
        )
    return notes


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines with aligned columns; the first column is aligned to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
