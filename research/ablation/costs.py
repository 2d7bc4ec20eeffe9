"""Measured costs of a training step, which a report shows beside the outcome.

`research.ablation.timing` measures them; here is what both sides need, without jax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from research.runs.store import read_json, write_json

FILE = "costs.json"
SECONDS, MEMORY = "seconds_per_step", "memory_bytes"
MEASURED: Mapping[str, bool | None] = {SECONDS: False, MEMORY: False}
"""{measured cost: whether higher is better}."""


@dataclass(frozen=True)
class Cost:
    """Cost of a training step of one run of an arm at a point.

    Attributes:
      arm, point: the arm, and the axis point.
      tokens: positions that a step computes, batch times length.
      memory_bytes: memory that the compiled step needs on a device, by the compiler's analysis:
        state, data and temporary buffers; None where the backend gives none.
      seconds: seconds per step, one value per round.
    """

    arm: str
    point: Mapping[str, Any]
    tokens: int
    memory_bytes: int | None
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Costs:
    """Costs of all arms at all points, and the environment in which they were measured."""

    environment: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[Cost] = ()


def write_costs(costs: Costs, workdir: Path) -> None:
    """Writes costs.json of a sweep's directory."""
    write_json(workdir / FILE, asdict(costs))


def read_costs(workdir: Path) -> Costs:
    """Returns the costs in costs.json of a directory; without rows if there is none."""
    return costs_from_json(read_json(workdir / FILE))


def costs_from_json(plain: Mapping[str, Any] | None) -> Costs:
    """Inverse of `dataclasses.asdict`; without rows for None."""
    if plain is None:
        return Costs()
    rows = [
        Cost(row["arm"], row["point"], row["tokens"], row["memory_bytes"], tuple(row["seconds"]))
        for row in plain["rows"]
    ]
    return Costs(plain["environment"], rows)
