"""Groups arms into families for figures and assigns their colors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from research.ablation.experiment import Experiment
from research.drawing.chart import PALETTE
from research.report.formatting import short_keys

SMALL = 3
"""Families with fewer arms than this are merged."""


@dataclass(frozen=True)
class Family:
    """Arms that are drawn in one panel, each in its own color.

    Attributes:
      title: config key that its arms change; "" if there is only one family.
      arms: names of the arms; the reference arm is first in every family.
    """

    title: str
    arms: Sequence[str]


def families(experiment: Experiment) -> list[Family]:
    """Groups the arms into families with no more arms than there are colors.

    An arm belongs to the family of the first key that its delta changes.
    """
    reference, *others = experiment.arms
    if len(experiment.arms) <= len(PALETTE):
        return [Family("", [reference, *others])]
    groups: dict[str, list[str]] = {}
    for arm in others:
        groups.setdefault(next(iter(experiment.arms[arm]), ""), []).append(arm)
    names = short_keys(groups)
    rest = [arm for group in groups.values() if len(group) < SMALL for arm in group]
    titled = [(names[key], group) for key, group in groups.items() if len(group) >= SMALL]
    return [
        Family(title, [reference, *part])
        for title, group in [*titled, ("others", rest)]
        for title, part in _parts(title, group)
    ]


def _parts(title: str, group: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """Splits a family into even parts that leave a color for the reference arm."""
    number = math.ceil(len(group) / (len(PALETTE) - 1))
    ends = [round(i * len(group) / max(1, number)) for i in range(number + 1)]
    parts = [group[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    return [
        (f"{title} {i} of {number}" if number > 1 else title, part)
        for i, part in enumerate(parts, start=1)
    ]


def arm_indices(experiment: Experiment) -> dict[str, tuple[int, int]]:
    """Returns {arm: (index of the arm, index of its color)}."""
    colors = arm_colors(experiment)
    return {arm: (i, colors[arm]) for i, arm in enumerate(experiment.arms)}


def row_colors(experiment: Experiment) -> dict[str, int]:
    """Returns {arm: index of its color} for figures that show all arms, each with its name.

    If there are more arms than colors, all arms but the reference arm share one color: their names
    tell them apart, and repeated colors would suggest a relation that does not exist.
    """
    if len(families(experiment)) == 1:
        return arm_colors(experiment)
    return {arm: min(i, 1) for i, arm in enumerate(experiment.arms)}


def arm_colors(experiment: Experiment) -> dict[str, int]:
    """Returns {arm: index of its color}; no two arms of a family share a color."""
    return {arm: i for family in families(experiment) for i, arm in enumerate(family.arms)}
