"""Formats numbers, intervals and axis points, in the same way for every output."""

import math
import re
from collections.abc import Mapping
from typing import Any

from research.stats import Summary

NONE = "–"
"""Placeholder for a missing number."""
MINUS = "\N{MINUS SIGN}"
"""Sign of negative numbers in text for readers; code and config values use a hyphen."""


def number(value: float | None) -> str:
    """Formats a number with a readable precision: 0.953, 12.5, 13,952, 1.2e−05; "–" for None."""
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e10:
        text = f"{value:.3g}"
    elif size >= 1000 or (value == int(value) and size >= 10):
        text = f"{value:,.0f}"
    elif size >= 100:
        text = f"{value:.1f}"
    elif size >= 0.0005:
        text = f"{value:.3f}"
    else:
        text = f"{value:.1e}"
    return text.replace("-", MINUS)


def signed(value: float) -> str:
    """Formats a difference with an explicit sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def bracket(low: float, high: float, form=number) -> str:
    """Returns "[low, high]"; "" if there is no interval."""
    return f"[{form(low)}, {form(high)}]" if math.isfinite(low + high) else ""


def mean_and_range(found: Summary, form=number) -> str:
    """Returns "0.953 (0.941 to 0.965)", the mean and extremes; for one seed, only its value."""
    if found.n < 2:
        return form(found.mean)
    return f"{form(found.mean)} ({form(found.low)} to {form(found.high)})"


def p_text(p: float) -> str:
    """Formats a p-value with a readable precision."""
    if math.isnan(p):
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def typographic(text: str) -> str:
    """Replaces the hyphens before negative numbers in a sentence by minus signs."""
    return re.sub(r"(?<![\w.)\]-])-(?=\.?\d)", MINUS, text)


def short_keys(keys) -> dict[str, str]:
    """Returns {dotted key: its last part}, or the whole key where that would be ambiguous."""
    leaves = [key.rsplit(".", 1)[-1] for key in keys]
    return {
        key: leaf if leaves.count(leaf) == 1 else key
        for key, leaf in zip(keys, leaves, strict=True)
    }


def value_text(value: Any) -> str:
    """Formats a config value; numbers have no trailing ".0"."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(value_text, value)) + ")"
    return str(value) if value != "" else "''"


def point_text(point: Mapping[str, Any]) -> str:
    """Returns an axis point as "length = 20, width = 64"; "" for the empty point."""
    names = short_keys(list(point))
    return ", ".join(f"{names[key]} = {value_text(value)}" for key, value in point.items())


def count(n: int, noun: str) -> str:
    """Returns "1 seed", "3 seeds"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
