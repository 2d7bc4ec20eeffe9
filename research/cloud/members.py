"""How many runs are trained as one program: a stated number, or as many as fit into memory."""

import math

from ml_collections import ConfigDict

from research.ablation.populations import MostMembers
from research.cloud.data import planned_data
from research.cloud.estimate import estimate
from research.errors import UserError
from research.parallel.layout import resolve_layout
from research.parallel.processes import on_first
from research.parallel.topology import Target
from research.training.program import static_id

AUTO, DEFAULT = "auto", 8
FILLED = 0.85
"""Part of the memory that an estimate may fill: programs have needed up to 16 % more than it."""


def parse_most(text: str, target: Target, tokens: int = 0) -> MostMembers:
    """Parses --max_members: a number, or "auto".

    Args:
      text: the flag.
      target: the devices that train.
      tokens: stated size of the corpus; 0: read from its files.

    Raises UserError.
    """
    if text == AUTO:
        return as_many_as_fit(target, tokens)
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"--max_members={text!r} must be at least 1, or {AUTO!r}.")
    return int(text)


def as_many_as_fit(target: Target, tokens: int = 0) -> MostMembers:
    """Returns a function that says how many of some runs of a config fit into memory together.

    Where the memory of a device is unknown, as on CPUs, it is `DEFAULT`. The numbers depend only on
    config and devices, so that a sweep that is started again on such devices forms the same
    populations.
    """
    if math.isinf(target.memory):
        return DEFAULT
    known: dict[tuple[str, int], int] = {}

    def most(config: ConfigDict, runs: int) -> int:
        key = (static_id(config), runs)
        if key not in known:
            # Decided by one process: others may see slightly less memory.
            known[key] = on_first(lambda: _most(config, runs, target, tokens))
        return known[key]

    return most


def _most(config: ConfigDict, runs: int, target: Target, tokens: int) -> int:
    """Returns the most of `runs` members that fit, at least 1."""
    try:
        task = planned_data(config, tokens).task
    except UserError as error:
        raise UserError(f"--max_members={AUTO}: {error}") from None
    fits, too_many = 1, runs + 1
    while too_many - fits > 1:
        members = runs if too_many > runs else (fits + too_many) // 2
        layout = resolve_layout(config, members, target.devices)
        found = estimate(config, task, layout, members, target.platform)
        if found.memory.total <= FILLED * target.memory:
            fits = members
        else:
            too_many = members
    return fits
