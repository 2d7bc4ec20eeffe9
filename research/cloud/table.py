"""What a plan shows: one screen per run, one row per cell of an experiment."""

from collections.abc import Iterable, Sequence

from research.cloud.collectives import by_kind
from research.cloud.forecast import Forecast, Row
from research.cloud.roofline import LINKS, MEMORY, PRODUCTS

GB = 1e9


def screen(title: str, forecasts: Sequence[Forecast]) -> str:
    """Returns a table with a column for each target."""
    first = forecasts[0]
    lines = [
        ("", [f.target.name for f in forecasts]),
        ("devices", [f"{f.target.devices} ({f.layout})" for f in forecasts]),
        ("implementation", [_implementation(f) for f in forecasts]),
        ("memory of a device, GB", [""] * len(forecasts)),
        *((f"  {name}", [f"{getattr(f.memory, name) / GB:.3g}" for f in forecasts])
          for name in first.memory._fields),
        ("  total", [f"{f.memory.total / GB:.3g}" for f in forecasts]),
        ("  compiled: kept + temporaries", [_compiled(f) for f in forecasts]),
        ("  of", [f"{f.target.memory / GB:.3g}" for f in forecasts]),
        ("", [verdict(f) for f in forecasts]),
        ("FLOPs per step: model's", [f"{f.traced.model_flops:.3g}" for f in forecasts]),
        ("  the device's, with remat", [f"{f.traced.flops:.3g}" for f in forecasts]),
        ("sent by a device per step", [""] * len(forecasts)),
        *_collectives(forecasts),
        ("time of a step, s", [_seconds(f) for f in forecasts]),
        ("  limited by", ["-" if f.times is None else f.times.limit for f in forecasts]),
        ("tokens/s", [_rate(f) for f in forecasts]),
        ("model FLOPs utilization", [_percent(f.utilization) for f in forecasts]),
        (f"hours for {first.steps:,} steps", [_number(f.hours, ".3g") for f in forecasts]),
        ("cost on demand", [dollars(f.cost()) for f in forecasts]),
        ("  spot", [dollars(f.cost(spot=True)) for f in forecasts]),
    ]  # fmt: skip
    members = f", {first.members} members" if first.members > 1 else ""
    head = f"{title}: {first.traced.parameters:,} parameters{members}"
    return "\n".join(
        [head, *_aligned([(name, *cells) for name, cells in lines]), *_notes(forecasts)]
    )


def rows_table(title: str, rows: Sequence[Row]) -> str:
    """Returns a table with a row for each arm at each point, and the totals."""
    head = (
        "arm",
        "point",
        "runs",
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
        seconds = "-" if worst.times is None else f"{worst.times.step:.3g}"
        costs = (_number(row.hours, ".2f"), dollars(row.cost()), dollars(row.cost(True)))
        body.append((row.arm, point, str(row.runs), verdict(worst), seconds, *costs))
    known = [row for row in rows if row.hours is not None]
    hours = sum(row.hours or 0.0 for row in known) if len(known) == len(rows) else None
    totals = [_total([row.cost(spot) for row in rows]) for spot in (False, True)]
    runs = str(sum(row.runs for row in rows))
    body.append(("total", "", runs, "", "", _number(hours, ".2f"), *map(dollars, totals)))
    forecasts = [f for row in rows for f in row.forecasts]
    return "\n".join([title, *_aligned([head, *body]), *_notes(forecasts[:1])])


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
    return f.traced.implementation + kernels


def _compiled(f: Forecast) -> str:
    if f.compiled is None:
        return "-"
    return f"{f.compiled.arguments / GB:.3g} + {f.compiled.temporaries / GB:.3g}"


def _collectives(forecasts: Sequence[Forecast]) -> list[tuple[str, list[str]]]:
    found = [by_kind(f.collectives) for f in forecasts]
    kinds = sorted({kind for kinds in found for kind in kinds})
    return [
        (
            f"  {kind}",
            [f"{k[kind][1] / GB:.3g} GB in {k[kind][0]:,.0f}" if kind in k else "-" for k in found],
        )
        for kind in kinds
    ] or [("  nothing", ["-"] * len(found))]


def _seconds(f: Forecast) -> str:
    if f.times is None:
        return "-"
    parts = " / ".join(f"{seconds:.2g}" for seconds in f.times)
    return f"{f.times.step:.3g} ({parts})"


def _rate(f: Forecast) -> str:
    return "-" if f.times is None else f"{f.tokens / f.times.step:,.0f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _notes(forecasts: Iterable[Forecast]) -> list[str]:
    """Returns how far the figures can be trusted."""
    forecasts = list(forecasts)
    notes = []
    if any(f.times for f in forecasts):
        notes.append(
            f"Times: products at {PRODUCTS:.0%} of peak / memory at {MEMORY:.0%} / links at "
            f"{LINKS:.0%} / network between slices; evaluation and starting come on top."
        )
    if not all(f.compiled for f in forecasts):
        notes.append("Not compiled: temporaries and messages are predicted from shapes.")
    for price in {f.price.generation: f.price for f in forecasts if f.price}.values():
        notes.append(
            f"Price of {price.generation}: {price.region}, looked up {price.date}, certainty "
            f"{price.sure}."
        )
    return notes


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns lines with columns of equal width, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return lines
